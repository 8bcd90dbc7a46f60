"""The functions of the C files here, compiled once by the machine's C compiler; where there is none, torch does it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")
_FUNCTIONS = (
    "add_and_norm",
    "gated",
    "attend",
    "norm",
    "norm_backward",
    "head",
    "head_backward",
    "gate",
    "gate_backward",
)
_PATIENCE = 120.0
"""Seconds that the compiler has."""


class Table(ctypes.Structure):
    _fields_ = (("rows", c_void_p), ("stride", c_int64))


class Level(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p),
        ("n", c_int64), ("stretch_stride", c_int64), ("head_stride", c_int64),
        ("starts", c_void_p), ("sizes", c_void_p), ("members", c_void_p), ("first", c_void_p),
    )  # fmt: skip


class Step(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64), ("heads", c_int64), ("kv", c_int64), ("dim", c_int64),
        ("made", c_void_p), ("factor", c_void_p), ("floor", c_float), ("scaling", c_float),
        ("cos", c_void_p), ("sin", c_void_p), ("positions", c_void_p), ("window", c_int64),
        ("keys", c_void_p), ("values", c_void_p), ("row_stride", c_int64), ("head_stride", c_int64), ("used", c_int64),
        ("late", c_void_p), ("queries", c_void_p), ("top", c_void_p), ("total", c_void_p), ("out", c_void_p),
        ("mades", Table), ("outs", Table), ("sums", Table), ("line", c_void_p),
    )  # fmt: skip


def library() -> ctypes.CDLL | None:
    """The functions, None where they cannot be had."""
    return _loaded()[0]


def missing() -> str | None:
    """Why there are none: no compiler, one that does not know what the code needs, or the user's wish."""
    return _loaded()[1]


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("COTERIE_NATIVE") == "0":
        return None, "COTERIE_NATIVE=0"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "there is no C compiler (cc, gcc or clang)"
    try:
        return _declared(ctypes.CDLL(str(_built(compiler)))), None
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode(errors="replace").strip().splitlines()
        return None, f"{compiler} fails: {told[0] if told else error.returncode}"
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # the second: nobody knows where home is
        return None, str(error)


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of its functions."""
    table: list[Any] = [Table, Table, c_void_p]
    loaded.add_and_norm.argtypes = [c_int, c_int64, c_int64, c_void_p, c_void_p, c_float, c_void_p, Table, c_void_p]
    loaded.gated.argtypes = [c_int, c_int64, c_int64, c_void_p, c_void_p, *table]
    loaded.attend.argtypes = [c_int, POINTER(Step), POINTER(Level), c_int64]
    one: list[Any] = [c_int, c_int64, c_int64, c_int64]
    loaded.norm.argtypes = [*one, c_void_p, c_void_p, c_float, c_void_p, c_void_p]
    loaded.norm_backward.argtypes = [*one, *[c_void_p] * 6]
    turns = [*one, c_int64, c_void_p, c_void_p]
    loaded.head.argtypes = [*turns, c_float, *[c_void_p] * 4]
    loaded.head_backward.argtypes = [*turns, *[c_void_p] * 6]
    loaded.gate.argtypes = [c_int, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_void_p]
    loaded.gate_backward.argtypes = [*loaded.gate.argtypes, c_void_p, c_void_p]
    from coterie.native import attention

    attention.declare(loaded)
    for name in _FUNCTIONS:
        getattr(loaded, name).restype = None
    return loaded


def _built(compiler: str) -> Path:
    """The library for this code, compiler and processor, in the user's own cache."""
    key = hashlib.sha256(
        "\n".join((*(s.read_text() for s in SOURCES), compiler, *_FLAGS, _processor())).encode()
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coterie"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    built = folder / f"native-{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / built.name
            command = [compiler, *_FLAGS, "-o", str(made), *(str(s) for s in SOURCES if s.suffix == ".c"), "-lm"]
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
