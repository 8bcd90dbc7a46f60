"""Products of rows with a linear layer's weight.

On a CPU in float32 they go to oneDNN, and not to MKL as torch's own do, which is slower on CPUs that are not Intel's
(`python -m bench gemm`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coterie.policies import replay


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x [L,I] times the transpose of weight [O,I] -> [L,O]. Not differentiable: for written-out gradients."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.mT


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
        return times(grad, weight.T) if needs[0] else None, grad.T @ x if needs[1] else None, None
