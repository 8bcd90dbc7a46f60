"""Few different numbers of rows for matrix products on a CPU.

oneDNN compiles code for every shape that it meets: that takes a millisecond or two, and of the last thousand shapes it
keeps half a megabyte each. Packed batches are hardly ever of the same length twice. So behind the tensors that are
multiplied there is memory for a rounder number of rows, and a product goes through all of these: what stands in the
last of them is anything, and no row of a product depends on another.

MKL, which multiplies in float32 on Intel's processors, wants other memory: lines that do not lie alike.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from coterie.hardware import intel

_FINEST = 8
_ALIKE, _ROOM = 256, 16
"""Floats."""


def rounded(rows: int, up: bool = True) -> int:
    """The next of at most 32 numbers between two powers of two; few rows are left alone, or, down, are none."""
    if rows < 2 * _FINEST:
        return rows if up else 0
    step = max(_FINEST, 2 ** (rows.bit_length() - 6))
    return (-(-rows // step) if up else rows // step) * step


def empty(like: Tensor, rows: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor [rows, *shape], and on a CPU memory behind it for a rounder number of rows."""
    room = rounded(rows) if like.device.type == "cpu" else rows
    return cut(like.new_empty(room, *shape, dtype=dtype), rows)


@cache
def by_onednn() -> bool:
    """Whether products in float32 go to oneDNN (see `products`)."""
    return torch.backends.mkldnn.is_available() and not intel()


def output(like: Tensor, *shape: int) -> Tensor:
    """`empty` for what goes on to products, where these go to oneDNN."""
    return like.new_empty(shape) if like.dtype == torch.float32 and not by_onednn() else empty(like, *shape)


def spaced(like: Tensor, rows: int, width: int) -> Tensor:
    """`output` whose lines need not touch. MKL reads columns too, for gradients of weights, and lines of 1024 bytes or
    a multiple take each other's place in caches: there is some room between them (dW at 4M: 0.87 of the time).
    """
    if like.dtype == torch.float32 and like.device.type == "cpu" and not by_onednn() and width % _ALIKE == 0:
        return like.new_empty(rows, width + _ROOM)[:, :width]
    return output(like, rows, width)


def widened(x: Tensor) -> Tensor:
    """x [L,I] with a rounder number of rows, those behind the L of any content; a copy where there is no memory."""
    count, width = x.shape
    rows = rounded(count)
    if rows == count:
        return x
    end = x.storage_offset() + rows * width
    if x.is_contiguous() and end * x.element_size() <= x.untyped_storage().nbytes():
        return x.as_strided((rows, width), (width, 1))
    room = x.new_empty(rows, width)
    room[:count] = x
    return room


def cut(x: Tensor, rows: int) -> Tensor:
    """A new tensor's first rows, in place: its memory stays."""
    return x if x.shape[0] == rows else x.resize_(rows, *x.shape[1:])
