"""Where model-written code runs: no network, nothing of this machine to read or write, limited in time and size."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from coterie.errors import SandboxError
from coterie.sandbox.limits import Limits
from coterie.sandbox.process import MEND, PYTHON, Backend, Program, Result


class Sandbox:
    """Runs programs, each in an empty world of its own.

    A program sees the system's libraries and Python's own, read-only, and a folder /tmp that is gone with it. It has no
    network, no other processes, no user id that owns anything, no privileges, and no system calls that could get it
    some. It and all it started end with the first limit it goes past, and with us.

    backend: "auto" takes bubblewrap where it is installed, else makes the namespaces itself; where neither is possible
    it raises SandboxError. "none" runs programs without protection, only limited; it warns.
    readable: further folders that programs may read. Linux only.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        backend: Literal["auto", "bubblewrap", "namespaces", "none"] = "auto",
        readable: Sequence[str] = (),
    ) -> None:
        self.limits, self.readable = limits or Limits(), tuple(readable)
        self.backend: Backend = detect() if backend == "auto" else backend
        if backend == "none":
            warnings.warn("model-written code runs without a sandbox: backend is 'none'", stacklevel=2)

    def start(self, argv: Sequence[str], *, files: Mapping[str, str] | None = None) -> Program:
        """A running program; `{folder}` in argv is where its files are."""
        return Program(argv, files or {}, self.limits, self.backend, self.readable)

    def run(self, argv: Sequence[str], *, stdin: str = "", files: Mapping[str, str] | None = None) -> Result:
        """Run a program to its end."""
        return self.start(argv, files=files).communicate(stdin.encode("utf-8", errors="surrogatepass"))

    def python(self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None) -> Result:
        """Run Python code, as the file main.py beside `files`, with the standard library."""
        return self.run(python("main.py"), stdin=stdin, files={**(files or {}), "main.py": code})


def python(name: str) -> list[str]:
    """The command that runs one of the files with this Python. It may import the others and the standard library."""
    return [PYTHON, "-E", "-s", "{folder}/" + name]


@functools.cache
def detect() -> Backend:
    """The safest backend that works here. Raises SandboxError where none does."""
    tried: list[str] = []
    backends: list[Backend] = ["bubblewrap", "namespaces"]
    for backend in backends:
        if backend == "bubblewrap" and shutil.which("bwrap") is None:
            tried.append("bubblewrap is not installed")
            continue
        try:
            result = Program([PYTHON, "-I", "-S", "-c", "pass"], {}, Limits(), backend).communicate()
        except (SandboxError, OSError) as error:
            tried.append(f"{backend}: {getattr(error, 'message', error)}")
            continue
        if result.ok:
            return backend
        tried.append(f"{backend}: {result.outcome} {result.stderr.strip()[-200:]}")
    raise SandboxError("no sandbox can be made on this machine: " + "; ".join(tried), hint=MEND)
