"""A grader's process: it answers one call at a time and can be killed. Run as `python -m coterie.rewards.worker`.

Imports nothing of coterie but errors, so that a grader's process is as light as the grader.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import dill

from coterie.errors import RewardError

USER_MODULES = ("coterie_rewards_", "coterie_user_")
"""Prefixes of the modules that users' files become; they have no name the process could import by itself."""
START_LIMIT = 120.0
"""Seconds a process has to start and load its function."""
GRACE = 1.0
"""Seconds past a limit after which a process ends itself, should nobody be left to kill it."""


class Timeout(Exception):
    """The call did not answer in time; its process is gone."""


class Raised(Exception):
    """The call raised; the message says what."""


class Worker:
    """Calls a function in a process of its own, started when first needed and again after a kill."""

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self._name = name
        try:
            self._fn = dill.dumps(fn, recurse=True)
        except Exception as error:  # whatever the function's own objects raise
            raise RewardError(
                f"reward function '{name}' cannot be sent to another process: {type(error).__name__}: {error}",
                hint="leave its timeout out, or open what it holds (files, locks, clients) inside the function",
            ) from None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Any] | None = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> Any:
        """The function's answer. The clock starts when the process has loaded the function, not before.

        Raises Timeout, Raised with the exception's text (also when the process dies), and RewardError when the
        function cannot be loaded there at all.
        """
        request = dill.dumps((args, kwargs, timeout))
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, request)
            answer = _receive(process.stdout, time.monotonic() + timeout)
        except TimeoutError:
            self.close()
            raise Timeout from None
        except (EOFError, BrokenPipeError):
            code = _exit_code(process)
            self.close()
            raise Raised(f"ended its process (exit code {code})") from None
        ok, value = dill.loads(answer)
        if not ok:
            raise Raised(value)
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, "-m", "coterie.rewards.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        self._process, self._end = process, weakref.finalize(self, _end, process)
        assert process.stdin is not None and process.stdout is not None
        files = {n: m.__file__ for n, m in list(sys.modules.items()) if n.startswith(USER_MODULES)}
        try:
            _send(process.stdin, dill.dumps((files, self._fn)))
            ok, text = dill.loads(_receive(process.stdout, time.monotonic() + START_LIMIT))
        except (EOFError, BrokenPipeError, TimeoutError):
            ok, text = False, "the process did not start"
        if not ok:
            self.close()
            raise RewardError(
                f"reward function '{self._name}' cannot be loaded in a process of its own: {text}",
                hint="leave its timeout out, or put it in a file and name it file.py:name",
            )
        return process

    def close(self) -> None:
        """Kill the process and what it started, if there is one. Also done when the worker is dropped, and at exit."""
        if self._end is not None:
            self._end()
        self._process = self._end = None


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Its own exit code: it closed its pipe, but may still be ending."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself in between
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # a request it never read


def _send(pipe: Any, data: bytes) -> None:
    pipe.write(struct.pack("!Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: Any, deadline: float) -> bytes:
    def read(count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(pipe.fileno(), count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    return read(struct.unpack("!Q", read(8))[0])


class _UserFiles(importlib.abc.MetaPathFinder):
    """Finds the modules that users' files were given in the parent, when a function turns out to need one."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.files[name]) if name in self.files else None


def serve() -> None:
    """Load the function, then answer calls until the pipe closes.

    The pipes are this function's alone: what the grader and its children print goes to stderr, and they have nothing
    to read. `faulthandler` watches from a thread that needs no GIL, so even a hung regular expression ends by itself
    when the parent was killed.
    """
    out, source = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    silent = open(os.devnull, "w")

    def read() -> bytes:
        head = source.read(8)
        if len(head) < 8:
            sys.exit(0)
        return source.read(struct.unpack("!Q", head)[0])

    try:
        faulthandler.dump_traceback_later(START_LIMIT + GRACE, exit=True, file=silent)
        files, payload = dill.loads(read())
        sys.meta_path.append(_UserFiles(files))
        fn = dill.loads(payload)
    except (Exception, SystemExit) as error:  # the user's code runs here
        _send(out, dill.dumps((False, f"{type(error).__name__}: {error}")))
        return
    _send(out, dill.dumps((True, "")))
    while True:
        faulthandler.cancel_dump_traceback_later()
        request = read()
        try:
            args, kwargs, timeout = dill.loads(request)
            faulthandler.dump_traceback_later(timeout + GRACE, exit=True, file=silent)
            value = fn(*args, **kwargs)
            value = asyncio.run(value) if inspect.iscoroutine(value) else value
            reply = dill.dumps((True, value))
        except (Exception, SystemExit) as error:  # the user's code runs here
            reply = dill.dumps((False, f"{type(error).__name__}: {error}"))
        _send(out, reply)


if __name__ == "__main__":
    serve()
