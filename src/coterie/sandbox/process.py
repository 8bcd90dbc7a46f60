"""Programs in the sandbox: started, fed, read from, and ended with all that they have started."""

from __future__ import annotations

import functools
import marshal
import os
import random
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from coterie.errors import SandboxError
from coterie.sandbox import seccomp
from coterie.sandbox.limits import Limits

Outcome = Literal["ok", "error", "timeout", "memory", "processes", "output", "killed"]
Backend = Literal["bubblewrap", "namespaces", "none"]

JAIL = Path(__file__).with_name("jail.py")
BOOT = """
import marshal, os, sys
life, answer, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
data = b""
while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
    part = os.read(life, 65536)
    if not part:
        os._exit(1)  # nobody is there any more
    data += part
code, config = marshal.loads(data[8:])
jail = {"__name__": "jail"}
exec(code, jail)
jail["main"](config, life, answer, kind)
os._exit(0)
"""
"""What starts the jail. Its code comes compiled: a script is compiled anew by every program that it starts."""
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", sys.base_prefix)
"""What a program may read of this machine."""
GRACE = 2.0
"""Seconds past the limit after which the supervisor itself is ended."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How a program ended. `exit_code` is None where it was ended; `killed` is by a signal of its own making."""

    outcome: Outcome
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    peak_mib: int

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"


class Program:
    """A running program with pipes to and from it."""

    def __init__(
        self,
        argv: Sequence[str],
        files: Mapping[str, str],
        limits: Limits,
        backend: Backend,
        readable: Sequence[str] = (),
    ) -> None:
        for name in files:
            if not name or "/" in name or name.startswith("."):
                raise SandboxError(f"{name!r} is no name for a file in the sandbox", hint="a plain name: main.py")
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="coterie-") if backend == "none" else None
        folder = self._folder.name if self._folder is not None else "/tmp"
        binds = list(dict.fromkeys((*SYSTEM, *readable)))
        identity = _identity() if backend != "none" else None
        config = {
            "argv": [a.replace("{folder}", folder) for a in argv],
            "env": ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
            "files": dict(files), "binds": binds, "limits": asdict(limits), "identity": identity,
            "seccomp": seccomp.program(),
        }  # fmt: skip
        theirs_life, self._life = os.pipe()
        self._answer, theirs_answer = os.pipe()
        numbers = [str(theirs_life), str(theirs_answer)]
        kind = {"bubblewrap": "inside", "namespaces": "namespaces", "none": "open"}[backend]
        command = [PYTHON, "-I", "-S", "-c", BOOT, *numbers, kind]
        if backend == "bubblewrap":
            command = [*_bubblewrap(binds, limits, identity), *command]
        self.began = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                pass_fds=(theirs_life, theirs_answer), start_new_session=True, cwd=folder, env=ENVIRONMENT,
            )  # fmt: skip
        finally:
            os.close(theirs_life)
            os.close(theirs_answer)
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self.stdin, self.stdout, self.stderr = self._process.stdin, self._process.stdout, self._process.stderr
        try:
            told = marshal.dumps((_jail(), config))
            _write_all(self._life, len(told).to_bytes(8, "big") + told)
        except BrokenPipeError:
            pass  # it could not start; `end` says why

    def communicate(self, stdin: bytes = b"") -> Result:
        """Feed it, read all it says until it ends or goes past a limit."""
        said: dict[Any, bytearray] = {self.stdout: bytearray(), self.stderr: bytearray()}
        room, answer = self.limits.output_kib << 10, bytearray()
        flooded = False
        os.set_blocking(self.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            for source in (self.stdout, self.stderr, self._answer):
                selector.register(source, selectors.EVENT_READ)
            if stdin:
                selector.register(self.stdin, selectors.EVENT_WRITE)
            else:
                self.stdin.close()
            while selector.get_map():
                left = self.began + self.limits.seconds + GRACE - time.monotonic()
                ready = selector.select(max(left, 0.0))
                if not ready and left <= 0:
                    break
                for key, _ in ready:
                    pipe: Any = key.fileobj
                    if pipe is self.stdin:
                        try:
                            stdin = stdin[os.write(self.stdin.fileno(), stdin[:65536]) :]
                        except BrokenPipeError:
                            stdin = b""
                        if not stdin:
                            selector.unregister(self.stdin)
                            self.stdin.close()
                        continue
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(pipe)
                    elif pipe == self._answer:
                        answer += data
                    else:
                        said[pipe] += data[: max(room, 0)]
                        room -= len(data)
                if room < 0:
                    flooded = True
                    break
        return self._result(bytes(answer), bytes(said[self.stdout]), bytes(said[self.stderr]), flooded)

    def ended(self) -> Result:
        """How it ended, once it has closed its stdout: nothing more is read of it."""
        answer, deadline = b"", self.began + self.limits.seconds + GRACE
        while select.select([self._answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(self._answer, 65536)
            if not data:
                break
            answer += data
        return self._result(answer, b"", b"", False)

    def _result(self, answer: bytes, stdout: bytes, stderr: bytes, flooded: bool) -> Result:
        self.end()
        seconds = time.monotonic() - self.began
        told = marshal.loads(answer) if answer else {}
        if told.get("outcome") == "refused":
            raise SandboxError(f"the sandbox cannot be made: {told['why']}", hint=MEND)
        out, err = (t.decode("utf-8", errors="replace") for t in (stdout, stderr))
        peak = int(told.get("peak_mib", 0))
        if flooded:
            return Result("output", None, out, err, seconds, peak)
        if not told:
            raise SandboxError(f"the sandbox's supervisor died: {err.strip()[-300:] or 'it says nothing'}", hint=MEND)
        if told["outcome"] != "ended":
            return Result(told["outcome"], None, out, err, seconds, peak)
        code = os.waitstatus_to_exitcode(told["status"])
        if code == -signal.SIGXCPU:
            return Result("timeout", None, out, err, seconds, peak)
        if code < 0:
            return Result("killed", code, out, err, seconds, peak)
        return Result("error" if code else "ok", code, out, err, seconds, peak)

    def end(self) -> None:
        """Kill it with all that it has started, and close the pipes. Ending twice is fine."""
        if self._life < 0:
            return
        os.close(self._life)
        self._life = -1
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
        os.close(self._answer)
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()


MEND = (
    "install bubblewrap, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0); backend='none' runs without protection"
)


@functools.cache
def _jail() -> CodeType:
    return compile(JAIL.read_text(encoding="utf-8"), "jail.py", "exec", dont_inherit=True, optimize=2)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


_SYS_ADMIN = 21  # the number of CAP_SYS_ADMIN


def _identity() -> int | None:
    """A user id nobody else has, where we may choose one: a limit of processes counts a user's, and never root's."""
    if os.geteuid() != 0:
        return None
    try:
        first, _, count = map(int, Path("/proc/self/uid_map").read_text().split())
        may = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return None
    if first != 0 or count < 65536 or not may >> _SYS_ADMIN & 1:
        return None
    return random.SystemRandom().randrange(32768, min(count, 1 << 31) - 2) & ~1  # its supervisor has the next


def _bubblewrap(binds: Sequence[str], limits: Limits, identity: int | None) -> list[str]:
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--as-pid-1", "--new-session", "--cap-drop", "ALL"]
    if identity is None:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:  # in a user namespace of root's there would be no other user; the jail gives these away
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_CHOWN"]
    for path in binds:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            for folder in reversed(Path(path).parents[:-1]):  # bubblewrap itself would make some that only root enters
                command += ["--dir", str(folder)]
            command += ["--ro-bind", path, path]
    # Of root, /proc/sys would be writable.
    command += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(limits.file_mib << 20), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]
