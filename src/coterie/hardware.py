"""The device of a model, and settings of the process that make the machine faster for us."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

from coterie.errors import PolicyError

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # of malloc.h


def device_of(name: str) -> str:
    """The device that `model.device` names; `auto` is CUDA where there is one. Raises PolicyError for one that is not
    there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    where = f"model.device={name}"
    try:
        torch.device(name)
    except RuntimeError:
        raise PolicyError("no such device", where=where, hint="auto, cpu, cuda or cuda:N") from None
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise PolicyError("no CUDA device is visible", where=where, hint="use device=auto or cpu")
    return name


def use_threads(count: int | None) -> None:
    """CPU threads of torch, where a recipe says how many: sums depend on it, so a resumed run uses the same."""
    reuse_freed_memory()
    if count is not None:
        import torch

        torch.set_num_threads(count)


def reuse_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after each large tensor.

    By default a tensor above some megabytes is mapped anew each time, and the system zeroes it page by page: 5 to 10 %
    of a training step on a CPU. The process then holds on to its peak. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for setting, value in ((_MMAP, 2**30), (_TRIM, 2**31 - 1), (_TOP_PAD, 2**26)):
            library.mallopt(setting, value)


@cache
def intel() -> bool:
    """Whether Linux says that the processor is Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
