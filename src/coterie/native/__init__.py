"""The functions of the C files here, compiled once by the machine's C compiler; where there is none, torch does it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")
_TYPES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16"}
"""Of what tensors hold: each has a library of its own from the same code."""
_PATIENCE = 120.0
"""Seconds that the compiler has."""


def functions(dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """The functions for tensors of this type, None where they cannot be had."""
    return _loaded(dtype)[0] if dtype in _TYPES else None


def missing() -> str | None:
    """Why there are none: no compiler, one that does not know what the code needs, or the user's wish."""
    return _loaded(torch.float32)[1]


@cache
def _loaded(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("COTERIE_NATIVE") == "0":
        return None, "COTERIE_NATIVE=0"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "there is no C compiler (cc, gcc or clang)"
    try:
        return _declared(ctypes.CDLL(str(_built(compiler, _TYPES[dtype])))), None
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode(errors="replace").strip().splitlines()
        return None, f"{compiler} fails: {told[0] if told else error.returncode}"
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:  # no home, a CC that is no command
        return None, str(error)


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of its functions."""
    from coterie.native import attention, cut, decode, draw, pieces

    for part in (attention, cut, decode, draw, pieces):
        part.declare(loaded)
    return loaded


def _built(compiler: str, holds: str) -> Path:
    """The library for this code, type, compiler and processor, in the user's own cache."""
    flags = (*_FLAGS, f"-D{holds}")
    made_of = [*(s.read_text() for s in SOURCES), compiler, *flags, _processor()]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coterie"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    built = folder / f"native-{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / built.name
            code = [str(source) for source in SOURCES if source.suffix == ".c"]
            command = [*shlex.split(compiler), *flags, "-o", str(made), *code, "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
            made.replace(built)
    return built


def _processor() -> str:
    """What tells one kind of processor from another: a home may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line.split(":")[0].strip(): line for line in lines}
    return "\n".join(
        told.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name", "flags", "Features")
    )


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def in_lines(x: Tensor) -> Tensor:
    """x [n,...] with each row in order; the rows may lie apart."""
    return x if x[:1].is_contiguous() else x.contiguous()
