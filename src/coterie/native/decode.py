"""What `decode.c` takes: its structures, and the types of its functions. `coterie.rollout.engines.fused` calls them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from typing import Any


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
        ("found", c_void_p),
        ("mades", Table), ("outs", Table), ("sums", Table), ("line", c_void_p),
    )  # fmt: skip


def declare(do: ctypes.CDLL) -> None:
    """The types of the functions."""
    rows: list[Any] = [c_int, c_int64, c_int64, c_void_p, c_void_p]
    do.add_and_norm.argtypes = [*rows, c_float, c_void_p, c_void_p, Table, c_void_p]
    do.gated.argtypes = [*rows, Table, Table, c_void_p]
    do.attend.argtypes = [c_int, POINTER(Step), POINTER(Level), c_int64]
    do.add_and_norm.restype = do.gated.restype = do.attend.restype = None
