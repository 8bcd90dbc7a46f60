"""The functions of `train.c` on tensors. `suits` says for which."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from coterie.native import functions, pointer
from coterie.policies.row_counts import output, spaced

PIECE = 128
"""As in `train.c`."""
WIDEST = 256


class _Lines(ctypes.Structure):
    _fields_ = (("at", c_void_p), ("stride", c_int64))


def suits(*tensors: Tensor | None) -> bool:
    """Whether the compiled functions are there and take these: on a CPU, all float32 or all bfloat16, the last
    dimension in order and a multiple of eight wide.
    """
    dtype = None
    for x in tensors:
        if x is None:
            continue
        if x.device.type != "cpu" or x.stride(-1) != 1 or x.shape[-1] % 8:
            return False
        if dtype is None:
            dtype = x.dtype
        elif x.dtype != dtype:
            return False
    return dtype is not None and functions(dtype) is not None


def norm(x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x [n,H] over its root mean square, times weight [H]; what x was multiplied by [n]; and x. Where something is
    `added` [n,H], x is their sum."""
    y, scale = output(x, *x.shape), x.new_empty(len(x), dtype=torch.float32)
    total = x if added is None else output(x, *x.shape)
    _do(x).norm(
        _threads(), *x.shape, x.stride(0), x.data_ptr(), pointer(added), total.data_ptr(), weight.data_ptr(), eps,
        y.data_ptr(), scale.data_ptr(),
    )  # fmt: skip
    return y, scale, total


def norm_backward(
    x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor, needs_weight: bool, plus: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x [n,H], and `plus` [n,H], and of weight [H], if asked. x, grad and plus are `in_lines`."""
    dx, (pieces, dweight) = spaced(grad, *x.shape), _pieces(x, x.shape[1]) if needs_weight else (None, None)
    _do(x).norm_backward(
        _threads(), *x.shape, _lines(x), weight.data_ptr(), scale.data_ptr(), *map(_lines, (grad, plus, dx)),
        pointer(pieces), pointer(dweight),
    )  # fmt: skip
    return dx, dweight


def head(
    x: Tensor, dim: int, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Heads of x [n,h*dim], normed where there is a weight [dim], turned by cos and signed sin [n,dim],
    [n,h,dim]; and what they were multiplied by to norm them [n,h].
    """
    n, heads = len(x), x.shape[1] // dim
    y, scale = x.new_empty(n, heads, dim), None if weight is None else x.new_empty(n, heads, dtype=torch.float32)
    _do(x).head(
        _threads(), n, heads, dim, x.stride(0), x.data_ptr(), pointer(weight), eps, cos.data_ptr(), sin.data_ptr(),
        y.data_ptr(), pointer(scale),
    )  # fmt: skip
    return y, scale


def head_backward(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    grad: Tensor,
    needs_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x [n,h*dim] and of weight [dim], if asked, for grad [n,h,dim]."""
    n, heads, dim = grad.shape
    dx, (pieces, dweight) = spaced(grad, n, heads * dim), _pieces(x, dim) if needs_weight else (None, None)
    _do(x).head_backward(
        _threads(), n, heads, dim, x.stride(0), x.data_ptr(), pointer(weight), pointer(scale), cos.data_ptr(),
        sin.data_ptr(), grad.data_ptr(), dx.data_ptr(), dx.stride(0), pointer(pieces), pointer(dweight),
    )  # fmt: skip
    return dx, dweight


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """silu(gates) * ups, [n,F]"""
    out = spaced(gates, *gates.shape)
    _do(gates).gate(_threads(), *gates.shape, *map(_lines, (gates, ups, out)))
    return out


def gate_backward(gates: Tensor, ups: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gates) * ups again; for its gradient `slope`, whose memory is used, those of gates and ups. [n,F] each"""
    out, dgates = (spaced(slope, *slope.shape) for _ in range(2))
    _do(gates).gate_backward(_threads(), *gates.shape, *map(_lines, (gates, ups, slope, out, dgates)))
    return out, dgates, slope


def _lines(x: Tensor | None) -> _Lines:
    return _Lines(None, 0) if x is None else _Lines(x.data_ptr(), x.stride(0))


def _pieces(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """What each piece of rows adds to the gradient of a weight [width], and that gradient."""
    return x.new_empty(-(-len(x) // PIECE), width, dtype=torch.float32), x.new_empty(width)


def _do(x: Tensor) -> Any:
    return functions(x.dtype)


def _threads() -> int:
    return torch.get_num_threads()


def declare(do: ctypes.CDLL) -> None:
    """The types of the functions."""
    rows: list[Any] = [c_int, c_int64, c_int64, c_int64]
    do.norm.argtypes = [*rows, *[c_void_p] * 4, c_float, c_void_p, c_void_p]
    do.norm_backward.argtypes = [
        *rows[:3], _Lines, c_void_p, c_void_p, _Lines, _Lines, _Lines, c_void_p, c_void_p,
    ]  # fmt: skip
    heads: list[Any] = [*rows, c_int64, c_void_p, c_void_p]
    do.head.argtypes = [*heads, c_float, *[c_void_p] * 4]
    do.head_backward.argtypes = [*heads, *[c_void_p] * 5, c_int64, c_void_p, c_void_p]
    gates: list[Any] = [c_int, c_int64, c_int64]
    do.gate.argtypes, do.gate_backward.argtypes = [*gates, *[_Lines] * 3], [*gates, *[_Lines] * 5]
    for function in (do.norm, do.norm_backward, do.head, do.head_backward, do.gate, do.gate_backward):
        function.restype = None
