"""Runs one program with nothing to reach and little to use: the part of the sandbox that is inside it.

`process.py` sends its code, compiled, and the configuration through a pipe that stays open as long as anybody wants an
answer. `main` also gets a pipe for the answer, and "namespaces" (make them here), "inside" (somebody else, such as
bubblewrap, has) or "open" (there are none). Standard library only, and little of it: every program waits for imports.

The process that supervises is the first of the program's process namespace: when it ends, the kernel ends all others.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
_LOCKED = 2 | 4 | 8 | 1024 | 2048 | 4096  # flags of a mount that a new user namespace may not take away
_NEW_USER, _NEW_OTHERS = 0x10000000, 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER, _DUMPABLE, _BOUNDING = 38, 22, 2, 4, 24
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_EMPTY = ("/mnt", "/media", "/srv", "/opt", "/run")
WATCH = 0.02
"""Seconds between two looks at the program's memory."""


class NoJail(Exception):
    """This machine does not let us make the namespaces."""


def main(config: dict[str, Any], life: int, answer: int, kind: str) -> None:
    if kind == "namespaces":
        try:
            user_namespace = _make_namespaces()
        except OSError as error:
            _tell(answer, {"outcome": "refused", "why": f"namespaces: {error}"})
            return
        inner = os.fork()  # the first of the new process namespace
        if inner:
            os.waitpid(inner, 0)
            return
        if user_namespace:
            config["identity"] = None  # there is only one
    try:
        if kind == "namespaces":
            _make_root(config)
        else:
            _write_files(config["files"], ".")
        result = _supervise(config, life, answer, kind)
    except (OSError, NoJail) as error:
        result = {"outcome": "refused", "why": f"{type(error).__name__}: {error}"}
    _tell(answer, result)


def _tell(fd: int, result: dict[str, Any]) -> None:
    os.write(fd, marshal.dumps(result))


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


# Namespaces and the file system


def _make_namespaces() -> bool:
    """As root without a user namespace, so that the program can be given a user id of its own; else with one (true)."""
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _libc.unshare(_NEW_OTHERS) == 0:
        return False
    _check(_libc.unshare(_NEW_USER | _NEW_OTHERS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    _check(_libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)), f"mount {target}")


def _make_root(config: dict[str, Any]) -> None:
    """A root that holds the given folders, read-only, and a /tmp of limited size that is the program's own."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = next((e for e in _EMPTY if os.path.isdir(e) and not any(b.startswith(e) for b in config["binds"])), None)
    if root is None:
        raise NoJail(f"none of {', '.join(_EMPTY)} is there to mount on")
    _mount("coterie", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in config["binds"]:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            _bind(path, root + path)
    os.mkdir(root + "/dev")
    for name in ("null", "zero", "random", "urandom"):
        _bind(f"/dev/{name}", f"{root}/dev/{name}", device=True)
    os.mkdir(root + "/proc")
    try:
        _mount("proc", root + "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    except OSError:
        pass  # a container that hides parts of its own /proc; most programs do without
    os.mkdir(root + "/tmp")
    size, files = config["limits"]["file_mib"], 64 * config["limits"]["files"]
    _mount("coterie", root + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size}m,nr_inodes={files},mode=1777")
    _write_files(config["files"], root + "/tmp")
    os.chdir(root)
    call = _PIVOT_ROOT.get(os.uname().machine)
    if call is None:
        raise NoJail(f"machine {os.uname().machine} is not known here")
    _check(_libc.syscall(ctypes.c_long(call), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", 2), "umount")
    os.chdir("/")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/tmp")


def _bind(source: str, target: str, device: bool = False) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    locked = os.statvfs(target).f_flag & _LOCKED
    flags = _MS_NOSUID | (0 if device else _MS_RDONLY | _MS_NODEV)
    _mount("none", target, None, _MS_REMOUNT | _MS_BIND | flags | locked)


def _write_files(files: dict[str, str], folder: str) -> None:
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
        os.chmod(os.path.join(folder, name), 0o444)


# The program and its supervisor


def _supervise(config: dict[str, Any], life: int, answer: int, kind: str) -> dict[str, Any]:
    """Start the program, watch the clock, its memory and whether anybody waits, and say how it ended."""
    limits, identity, began = config["limits"], config["identity"], time.monotonic()
    if identity is not None:
        os.chown("/tmp", identity, identity)
    _libc.prctl(_DUMPABLE, 0, 0, 0, 0)  # nobody reads or traces us
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        try:
            _become(config, identity, kind)
        except BaseException as error:
            os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
        os._exit(126)
    if identity is not None:
        _take_identity(identity + 1)
    _drop_capabilities()
    for fd in (0, 1, 2):
        os.close(fd)
    peak = 0

    def ended(outcome: str, **more: Any) -> dict[str, Any]:
        return {"outcome": outcome, "seconds": time.monotonic() - began, "peak_mib": peak >> 20, **more}

    while True:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done == child:
            return ended("ended", status=status)
        if done:
            continue  # an orphan that came to us
        left = limits["seconds"] - (time.monotonic() - began)
        if kind != "open":
            count, now = _usage()
            peak = max(peak, now)
            if peak > limits["memory_mib"] << 20 or count > limits["processes"]:
                return ended("memory" if peak > limits["memory_mib"] << 20 else "processes")
        if left <= 0 or life in select.select([life, woken], [], [], min(left, WATCH))[0]:
            try:
                os.killpg(child, signal.SIGKILL)  # without a process namespace nobody ends it with us
            except (ProcessLookupError, PermissionError):
                pass
            return ended("timeout")
        if select.select([woken], [], [], 0)[0]:
            os.read(woken, 4096)


def _usage() -> tuple[int, int]:
    """Processes of the namespace but the first, and their bytes in memory."""
    count = total = 0
    try:
        names = os.listdir("/proc")
    except OSError:
        return 0, 0
    for name in names:
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    total += int(file.read().split()[1]) * resource.getpagesize()
            except (OSError, IndexError):
                continue  # it has just ended
            count += 1
    return count, total


def _take_identity(identity: int) -> None:
    os.setgroups([])
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)


def _become(config: dict[str, Any], identity: int | None, kind: str) -> None:
    """Limits, no privileges, no dangerous system calls, and then the program."""
    os.setsid()
    os.closerange(3, 1 << 16)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    limits = config["limits"]
    memory, file = limits["memory_mib"] << 20, limits["file_mib"] << 20
    for which, soft in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]), (resource.RLIMIT_AS, 2 * memory), (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, limits["files"]), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_SIGPENDING, 64),
    ):  # fmt: skip
        resource.setrlimit(which, (soft, soft))
    if kind != "open":  # elsewhere it would count all processes of the user
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
    for capability in range(64):
        if _libc.prctl(_BOUNDING, capability, 0, 0, 0) != 0:
            break
    if identity is not None:
        _take_identity(identity)
    _drop_capabilities()
    _check(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    blocked = config["seccomp"]
    if blocked:
        lines = ctypes.create_string_buffer(blocked, len(blocked))

        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

        whole = Program(len(blocked) // 8, ctypes.cast(lines, ctypes.c_void_p))
        _check(_libc.prctl(_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0), "seccomp")
    os.execve(config["argv"][0], config["argv"], config["env"])


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
