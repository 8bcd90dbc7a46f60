"""A grader's process: it answers one call at a time and can be killed. Run as `python -m coterie.rewards.worker`."""

from __future__ import annotations

import asyncio
import inspect
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import dill

from coterie.rewards.functions import FILE_MODULE, resolve


class Timeout(Exception):
    """The call did not answer in time; its process is gone."""


class Raised(Exception):
    """The call raised; the message says what."""


class Worker:
    """Calls a function in a process of its own, started when first needed and again after a kill."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._payload = dill.dumps(_importable(fn) or fn, recurse=True)
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> Any:
        """The function's answer. The clock starts when the process has loaded the function, not before.

        Raises Timeout, or Raised with the exception's text (also when the process dies).
        """
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, dill.dumps((args, kwargs)))
            answer = _receive(process.stdout, time.monotonic() + timeout)
        except TimeoutError:
            self.close()
            raise Timeout from None
        except (EOFError, BrokenPipeError):
            self.close()
            raise Raised(f"its process died (exit code {process.returncode})") from None
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
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, self._payload)
            ok, text = dill.loads(_receive(process.stdout, time.monotonic() + 120.0))
        except (EOFError, BrokenPipeError, TimeoutError):
            self.close()
            raise Raised("its process could not be started") from None
        if not ok:
            self.close()
            raise Raised(f"loading it raised {text}")
        return process

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass
            self._process = None


def _importable(fn: Callable[..., Any]) -> str | None:
    """'file.py:name' of a function that `functions.resolve` read from a file: its module has no name to import."""
    module = sys.modules.get(getattr(fn, "__module__", ""), None)
    if module is None or not module.__name__.startswith(FILE_MODULE):
        return None
    return f"{module.__file__}:{fn.__qualname__}"


def _send(pipe: Any, data: bytes) -> None:
    pipe.write(struct.pack("!Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: Any, deadline: float) -> bytes:
    def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(pipe.fileno(), count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    return read(struct.unpack("!Q", read(8))[0])


def serve() -> None:
    """Load the function, then answer calls until the pipe closes. What the function prints goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = sys.stdin.buffer

    def read() -> bytes:
        head = source.read(8)
        if len(head) < 8:
            sys.exit(0)
        return source.read(struct.unpack("!Q", head)[0])

    try:
        fn = dill.loads(read())
        fn = resolve(fn) if isinstance(fn, str) else fn
    except Exception as error:
        _send(out, dill.dumps((False, f"{type(error).__name__}: {error}")))
        return
    _send(out, dill.dumps((True, "")))
    while True:
        args, kwargs = dill.loads(read())
        try:
            value = fn(*args, **kwargs)
            value = asyncio.run(value) if inspect.iscoroutine(value) else value
            reply = dill.dumps((True, value))
        except Exception as error:
            reply = dill.dumps((False, f"{type(error).__name__}: {error}"))
        _send(out, reply)


if __name__ == "__main__":
    serve()
