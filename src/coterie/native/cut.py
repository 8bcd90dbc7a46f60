"""The function of `cut.c` on tensors. `suits` says for which."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_double, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from coterie.native import functions


def suits(logits: Tensor) -> bool:
    """Whether the compiled function is there and takes these: on a CPU, float32."""
    return logits.dtype == torch.float32 and logits.device.type == "cpu" and functions() is not None


def cut(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """[n,V] bool: what top-k, top-p and min-p remove of logits [n,V], each of what the one before left. Of equal logits
    top-k and min-p keep all or none, top-p the first.
    """
    logits, threads = logits.contiguous(), torch.get_num_threads()
    n, width = logits.shape
    out, rooms = torch.empty(n, width, dtype=torch.bool), torch.empty(threads, width, dtype=torch.int64)
    function = functions()
    assert function is not None
    function.cut(
        threads, n, width, logits.data_ptr(), top_k, top_p, math.log(min_p) if min_p > 0.0 else -math.inf,
        rooms.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def declare(do: ctypes.CDLL) -> None:
    """The type of the function."""
    do.cut.argtypes = [c_int, c_int64, c_int64, c_void_p, c_int64, c_double, c_float, c_void_p, c_void_p]
    do.cut.restype = None
