"""A solution against its tests, each in a sandbox of its own, so that neither can reach the other."""

from __future__ import annotations

import os
import select
import site
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from coterie.sandbox import values
from coterie.sandbox.process import GRACE, PYTHON, Program
from coterie.sandbox.sandbox import Sandbox

_HERE = Path(__file__).parent
PACKAGES = site.getsitepackages([sys.base_prefix])
_MESSAGE_LIMIT = 16 << 20
"""Bytes of one call or answer."""


@dataclass(frozen=True)
class Tested:
    """`outcome`: passed, failed (an assertion, or an exception of the solution), broken (the solution does not load),
    or how its process ended: timeout, memory, processes, killed, error, output.
    """

    outcome: str
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_tests(sandbox: Sandbox, solution: str, tests: str) -> Tested:
    """Whether Python tests, which call functions that the solution defines, run without an exception.

    The solution sees the arguments of calls and nothing else: no test, no expected answer, no assertion. What it
    returns is rebuilt as plain values on the side of the tests. Arguments and results are therefore of builtin types.
    Raises SandboxError where there is no sandbox.
    """
    match = _Match(sandbox)
    try:
        return match.play(solution, tests)
    finally:
        match.end()


class _Match:
    """A solver and a tester, and the lines that are carried between them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.programs: list[Program] = []
        self.buffers: dict[int, bytearray] = {}

    def start(self, script: str, name: str, text: str) -> Program:
        files = {name: text} | {file: (_HERE / file).read_text() for file in (script, "lines.py", "values.py")}
        command = [PYTHON, "-E", "-s", "-S", "{folder}/" + script, *PACKAGES]  # see `lines.libraries`
        program = self.sandbox.start(command, files=files)
        os.set_blocking(program.stdin.fileno(), False)
        self.programs.append(program)
        return program

    def end(self) -> None:
        for program in self.programs:
            program.end()

    def play(self, solution: str, tests: str) -> Tested:
        solver, tester = self.start("solver.py", "solution.py", solution), self.start("tester.py", "tests.py", tests)
        deadline = time.monotonic() + self.sandbox.limits.seconds + GRACE
        loaded = self.line(solver, deadline)
        if loaded is None:
            return _of(solver)
        try:
            problem = values.load(loaded.decode("ascii"))
        except (ValueError, TypeError, RecursionError) as error:
            return Tested("broken", f"the solution's process speaks nonsense: {error}")
        if problem is not None:
            return Tested("broken", ": ".join(map(str, problem)) if isinstance(problem, list) else "")
        while True:
            line = self.line(tester, deadline)
            if line is None:
                ended = _of(tester)
                return Tested(ended.outcome, f"the tests: {ended.message}")
            kind, _, rest = line.partition(b" ")
            if kind == b"done":
                verdict = values.load(rest.decode("ascii"))
                return Tested(verdict[0], ": ".join(verdict[1:]))
            answer = self.line(solver, deadline) if self.send(solver, rest + b"\n", deadline) else None
            if answer is None:
                return _of(solver)
            if not self.send(tester, answer + b"\n", deadline):
                return _of(tester)

    def line(self, program: Program, deadline: float) -> bytes | None:
        """The next line that a program says; None when it ends, says too much, or takes too long."""
        fd = program.stdout.fileno()
        buffer = self.buffers.setdefault(fd, bytearray())
        while b"\n" not in buffer:
            left = deadline - time.monotonic()
            if left <= 0 or len(buffer) > _MESSAGE_LIMIT or not select.select([fd], [], [], left)[0]:
                return None
            data = os.read(fd, 1 << 16)
            if not data:
                return None
            buffer += data
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        return line

    def send(self, program: Program, data: bytes, deadline: float) -> bool:
        fd = program.stdin.fileno()
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [fd], [], left)[1]:
                return False
            try:
                data = data[os.write(fd, data[: 1 << 16]) :]
            except BrokenPipeError:
                return False
        return True


def _of(program: Program) -> Tested:
    result = program.ended()
    if result.outcome == "ok":
        return Tested("error", "the process ended before its last answer")
    return Tested(result.outcome, f"exit code {result.exit_code}" if result.exit_code is not None else "")
