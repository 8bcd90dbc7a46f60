"""Products of rows with a linear layer's weight.

On a CPU in float32 they go to oneDNN, and not to MKL as torch's own do, which is slower on CPUs that are not Intel's,
and faster on those that are (`python -m bench gemm`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coterie.policies import replay, row_counts


def times(x: Tensor, weight: Tensor, plus: Tensor | None = None, spaced: bool = False) -> Tensor:
    """x [L,I] times the transpose of weight [O,I], and `plus` [L,O] -> [L,O]. `plus`'s memory may be used. What is made
    may have lines that do not touch, if asked to be `spaced` for another product. Not differentiable.
    """
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.bfloat16):
        out = x @ weight.mT
        return out if plus is None else out.add_(plus)
    if x.dtype == torch.float32 and not row_counts.by_onednn():
        if plus is not None:
            return plus.addmm_(x, weight.mT)
        if spaced:
            return torch.mm(x, weight.mT, out=row_counts.spaced(x, len(x), len(weight)))
        return x @ weight.mT
    wide = row_counts.widened(x)
    if x.dtype == torch.float32:
        multiply = torch.ops.mkldnn._linear_pointwise
        if plus is not None:
            out = multiply.binary(wide, row_counts.widened(plus), weight, None, "add")
        else:
            out = multiply(wide, weight, None, "none", [], "")
        return row_counts.cut(out, x.shape[0])
    out = row_counts.cut(wide @ weight.mT, x.shape[0])
    return out if plus is None else out.add_(plus)


def add_times(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total [O,I], if there is one already, plus the transpose of a [L,O] times b [L,I]; in float32 at least."""
    if a.dtype in (torch.float32, torch.float64):
        return a.T @ b if total is None else total.addmm_(a.T, b)
    whole = row_counts.rounded(len(a), up=False) if a.device.type == "cpu" else len(a)
    made = a[:whole].T @ b[:whole]
    total = made.float() if total is None else total.add_(made)
    return total if whole == len(a) else total.addmm_(a[whole:].T.float(), b[whole:].float())


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [L,I], weight [O,I] -> [L,O]. Differentiable once. What generation kept is not computed again."""
    return linears(x, weight)[0]


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x [L,I] times each of the weights [O,I] -> [L,O] each, as `linear`."""
    kept = replay.current()
    if kept is None:
        return _Linears.apply(x, None, *weights)
    outs = _Linears.apply(x, [kept.known(weight) for weight in weights], *weights)
    for weight, out in zip(weights, outs, strict=True):
        kept.keep(weight, out)
    return outs


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, known: list[Tensor | None] | None, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        known = [None] * len(weights) if known is None else known
        return tuple(times(x, w) if out is None else out for w, out in zip(weights, known, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx, slopes = None, []
        for grad, weight, needed in zip(grads, weights, ctx.needs_input_grad[2:], strict=True):
            if grad is not None and ctx.needs_input_grad[0]:
                dx = times(grad, weight.T, dx)
            slopes.append(add_times(None, grad, x).to(x.dtype) if grad is not None and needed else None)
        return dx, None, *slopes
