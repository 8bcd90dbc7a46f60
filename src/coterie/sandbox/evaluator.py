"""Expressions worked out in one sandbox: starting one takes longer than most of them do."""

from __future__ import annotations

import select
import time
import weakref

from coterie.sandbox.limits import Limits
from coterie.sandbox.process import PYTHON, Program
from coterie.sandbox.sandbox import Sandbox

PATIENCE = 5.0
"""Seconds an expression has."""
LONGEST = 64
"""Bytes of what it prints that are read."""
SERVER = f"""
import ctypes, os, select, signal, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # its memory and files are not for those it starts
while line := sys.stdin.buffer.readline():
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDWR), 0), os.dup2(write, 1), os.dup2(0, 2), os.closerange(3, 64)
            os.write(1, str(eval(bytes.fromhex(line.decode()).decode(), {{}})).encode()[:{LONGEST}])
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, {LONGEST}) if select.select([read], [], [], {PATIENCE})[0] else None
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.write(1, b"late\\n" if said is None else said.hex().encode() + b".\\n")
"""


class Evaluator:
    """Works out Python expressions in a sandbox that stays. Each runs in a process of its own, forked and ended there.

    They share the sandbox's files and limits. One that ends the sandbox ends it for itself: the next has a new one.
    """

    def __init__(self, limits: Limits) -> None:
        self._sandbox = Sandbox(limits)
        self._program: Program | None = None
        self._end: weakref.finalize[..., Evaluator] | None = None

    def value(self, expression: str, attempts: int = 3) -> str | None:
        """str() of its value, at most LONGEST bytes; "" where it fails, None where it has none in time or ends all.

        It is asked again where there was no answer: a machine that stood still is not the expression's fault.
        """
        for _ in range(attempts):
            said = self._ask(expression)
            if said is not None:
                return said
        return None

    def close(self) -> None:
        if self._end is not None:
            self._end()
        self._program = self._end = None

    def _ask(self, expression: str) -> str | None:
        program = self._program or self._start()
        try:
            program.stdin.write(expression.encode("utf-8", errors="surrogatepass").hex().encode() + b"\n")
        except BrokenPipeError:
            self.close()
            return None
        line, deadline = b"", time.monotonic() + 2 * PATIENCE
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            data = (
                program.stdout.read(4 * LONGEST) if select.select([program.stdout], [], [], max(left, 0.0))[0] else b""
            )
            if not data:
                self.close()
                return None
            line += data
        if not line.endswith(b".\n"):
            return None
        return bytes.fromhex(line[:-2].decode()).decode("utf-8", errors="replace")

    def _start(self) -> Program:
        program = self._sandbox.start([PYTHON, "-I", "-S", "{folder}/main.py"], files={"main.py": SERVER})
        self._program, self._end = program, weakref.finalize(self, program.end)
        return program
