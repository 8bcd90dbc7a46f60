"""The functions of `attention.c` on tensors: attention of groups that share a prompt, forward and backward."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.native import functions, pointer
from coterie.policies.row_counts import output

if TYPE_CHECKING:
    from coterie.policies.attention import Rule
    from coterie.policies.two_part import Layout

_WIDEST = 128
_MOST = 2**24
"""Floats in which the gradients of prompts' keys and values wait for their sum."""


class Bundle(ctypes.Structure):
    _fields_ = (
        ("start", c_int64), ("groups", c_int64), ("prefix", c_int64), ("rows", c_int64), ("length", c_int64),
        ("first", c_int64), ("last", c_int64), ("sizes", c_void_p),
    )  # fmt: skip


class Packed(ctypes.Structure):
    _fields_ = (
        ("heads", c_int64), ("kv", c_int64), ("dim", c_int64),
        ("q_stride", c_int64), ("k_stride", c_int64), ("v_stride", c_int64),
        ("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("out", c_void_p), ("log_sum", c_void_p), ("grad", c_void_p),
        ("dq", c_void_p), ("dk", c_void_p), ("dv", c_void_p),
        ("scaling", c_float), ("window", c_int64), ("token", c_void_p), ("holds", c_void_p), ("asked", c_void_p),
        ("backward", c_int),
    )  # fmt: skip


def computes(config: Any, model: Any) -> bool:
    """Whether the attention of a model of this config is computed here, so that padding in a layout costs nothing."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fits = width % 16 == 0 and width <= _WIDEST and not getattr(config, "attn_logit_softcapping", None)
    return fits and model.device.type == "cpu" and functions(model.dtype) is not None


def suits(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule) -> bool:
    """Whether the compiled functions are there and take these."""
    width = q.shape[2]
    return (
        q.device.type == "cpu"
        and functions(q.dtype) is not None
        and rule.softcap is None
        and layout.again is None
        and width % 16 == 0
        and width <= _WIDEST
        and v.shape == k.shape
        and k.shape[2] == width
        and q.dtype == k.dtype == v.dtype
    )


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule) -> tuple[Tensor, Tensor]:
    """q [L,H,D], k and v [L,K,D] `in_lines` -> what attention found [L,H,D], and the logarithms of sums of exponentials
    [L,H]; anything where `rule` does not ask."""
    out, log_sum = output(q, *q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    packed = _packed(q, k, v, out, log_sum, layout, rule)
    _run(packed, layout, q)
    return out, log_sum


def attend_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, grad: Tensor, layout: Layout, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v for that of `out`."""
    out, log_sum, grad = out.contiguous(), log_sum.contiguous(), grad.contiguous()
    packed = _packed(q, k, v, out, log_sum, layout, rule)
    found = output(q, *q.shape), output(k, *k.shape), output(v, *v.shape)
    packed.grad, packed.backward = grad.data_ptr(), 1
    packed.dq, packed.dk, packed.dv = (x.data_ptr() for x in found)
    _run(packed, layout, q)
    return found


def _packed(q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, layout: Layout, rule: Rule) -> Packed:
    return Packed(
        heads=q.shape[1],
        kv=k.shape[1],
        dim=q.shape[2],
        q_stride=q.stride(0),
        k_stride=k.stride(0),
        v_stride=v.stride(0),
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        log_sum=log_sum.data_ptr(),
        scaling=rule.scaling,
        window=rule.window or 0,
        token=pointer(layout.token),
        holds=pointer(layout.real),
        asked=pointer(rule.asked),
    )


def _run(packed: Packed, layout: Layout, like: Tensor) -> None:
    do, threads = functions(like.dtype), torch.get_num_threads()
    assert do is not None
    for bundle in layout.bundles:
        n, sizes = bundle.groups, bundle.sizes.data_ptr()
        b = Bundle(bundle.start, n, bundle.prefix, bundle.rows, bundle.length, 0, n, sizes)
        room, each = do.two_part_room(byref(packed), byref(b)), do.two_part_found(byref(packed), byref(b))
        some = max(1, min(n, _MOST // max(each, 1)))  # groups at once
        work, found = (like.new_empty(n, dtype=torch.float32) for n in (room * threads, each * some))
        for b.first in range(0, n, some):
            b.last = min(b.first + some, n)
            do.two_part(threads, byref(packed), byref(b), work.data_ptr(), found.data_ptr())


def declare(do: ctypes.CDLL) -> None:
    """The types of the functions."""
    both: list[Any] = [POINTER(Packed), POINTER(Bundle)]
    do.two_part_room.argtypes = do.two_part_found.argtypes = both
    do.two_part_room.restype = do.two_part_found.restype = c_int64
    do.two_part.argtypes, do.two_part.restype = [c_int, *both, c_void_p, c_void_p], None
