"""Products of rows with a linear layer's weight.

On a CPU in float32 they go to oneDNN, and not to MKL as torch's own do, which is slower on CPUs that are not Intel's
(`python -m bench gemm`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coterie.policies import replay, row_counts


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x [L,I] times the transpose of weight [O,I] -> [L,O]. Not differentiable: for written-out gradients."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or x.dtype != weight.dtype:
        return x @ weight.mT
    wide = row_counts.widened(x)
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        out = torch.ops.mkldnn._linear_pointwise(wide, weight, None, "none", [], "")
    else:
        out = wide @ weight.mT
    return row_counts.cut(out, x.shape[0])


def add_times(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [O,I] += the transpose of a [L,O] times b [L,I], where `total` is of the type of both, or float32."""
    if total.dtype == a.dtype:
        total.addmm_(a.T, b)
        return
    whole = row_counts.rounded(len(a), up=False) if a.device.type == "cpu" else len(a)
    total.add_(a[:whole].T @ b[:whole])
    if whole < len(a):
        total.addmm_(a[whole:].T.to(total.dtype), b[whole:].to(total.dtype))


def _sum_times(a: Tensor, b: Tensor) -> Tensor:
    """The transpose of a [L,O] times b [L,I] -> [O,I]"""
    if a.dtype != torch.bfloat16:
        return a.T @ b
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float32)
    add_times(total, a, b)
    return total.to(a.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [L,I], weight [O,I] -> [L,O]. Differentiable once. What generation kept is not computed again."""
    kept = replay.current()
    if kept is None:
        return _Linear.apply(x, weight, None)
    out = _Linear.apply(x, weight, kept.known(weight))
    kept.keep(weight, out)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return times(x, weight) if known is None else known

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return times(grad, weight.T) if needs[0] else None, _sum_times(grad, x) if needs[1] else None, None
