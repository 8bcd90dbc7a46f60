"""The system calls that a sandboxed program is refused, as a BPF program for seccomp (Linux, x86-64 and arm64).

Standard library only: it is also imported inside the sandbox, where nothing else is.
"""

from __future__ import annotations

import errno
import platform
import struct

# name -> (x86-64, arm64); None where the machine has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes and their memory
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # mounts, namespaces, roots
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "fanotify_init": (300, 262),
    # the kernel
    "bpf": (321, 280), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116), "iopl": (172, None),
    "ioperm": (173, None), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "modify_ldt": (154, None), "personality": (135, 92), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "_sysctl": (156, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "vmsplice": (278, 75),
    # keys, asynchronous calls that seccomp does not see, shared memory that outlives processes
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip
_NUMBERS = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29)}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEW_NAMESPACES = 0x7E020080
_AF_UNIX = 1
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX put words into a terminal's mouth

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def program(machine: str | None = None) -> bytes:
    """The filter for `machine` (this one's by default), or b"" where there is none for it.

    Calls of another architecture kill; denied calls fail with EPERM, clone3 with ENOSYS, so that C libraries fall back
    to clone, whose flags can be read. Sockets other than AF_UNIX cannot be made.
    """
    found = _ARCHITECTURES.get(machine or platform.machine())
    if found is None:
        return b""
    index, architecture = found
    code: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    code.append((_LOAD, 0, 0, 0))
    if index == 0:
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # the x32 doubles of all calls

    def when(number: int, then: list[tuple[int, int, int, int]]) -> None:
        code.append((_EQUAL, 0, len(then), number))
        code.extend(then)

    def refuse(error: int) -> tuple[int, int, int, int]:
        return (_RETURN, 0, 0, _ERROR | error)

    allow = (_RETURN, 0, 0, _ALLOW)
    for numbers in _DENIED.values():
        number = numbers[index]
        if number is not None:
            when(number, [refuse(errno.EPERM)])
    when(_NUMBERS["clone3"][index], [refuse(errno.ENOSYS)])
    first, second = (_LOAD, 0, 0, 16), (_LOAD, 0, 0, 24)  # low words of the first two arguments
    when(_NUMBERS["clone"][index], [first, (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse(errno.EPERM), allow])
    when(_NUMBERS["socket"][index], [first, (_EQUAL, 1, 0, _AF_UNIX), refuse(errno.EACCES), allow])
    told = [(_EQUAL, 0, 1, request) for request in _TERMINAL_INPUT]
    when(_NUMBERS["ioctl"][index], [second, told[0], refuse(errno.EPERM), told[1], refuse(errno.EPERM), allow])
    code.append(allow)
    return b"".join(struct.pack("=HBBI", op, yes, no, k) for op, yes, no, k in code)
