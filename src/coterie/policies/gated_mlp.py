"""The gated MLP (SwiGLU, arXiv:2002.05202) in pieces of rows that stay in a CPU's caches, forward and backward.

Between its products the MLP reads and writes tensors several times wider than the hidden states; done over all rows at
once each of these passes goes to main memory. Two wide tensors a row are kept for the backward pass, not four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from coterie.native import pieces as native
from coterie.policies import replay
from coterie.policies.products import add_times, linear, times


def rows_at_once(width: int, device: torch.device) -> int:
    """Rows whose wide tensors fit in a CPU's last cache together; all of them on an accelerator."""
    return max(128, 2**20 // width) if device.type == "cpu" else 2**31


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate x) * up x): x [L,H], gate and up [F,H], down [H,F] -> [L,H]. Differentiable once."""
    kept = replay.current()
    if kept is None:
        return _GatedMLP.apply(x, gate, up, down, None)
    known = [kept.known(w) for w in (gate, up, down)]
    if kept.reading:
        return _GatedMLP.apply(x, gate, up, down, None if any(k is None for k in known) else known)
    return linear(silu(linear(x, gate)).mul_(linear(x, up)), down)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, known: Any) -> Tensor:
        size = rows_at_once(len(gate), x.device)
        if known is not None:
            gates, values, out = known
            halves = zip(gates.split(size), values.split(size), strict=True)
            ctx.save_for_backward(x, gate, up, down, *(half for pair in halves for half in pair))
            return out
        outs, kept = [], []
        for rows in x.split(size):
            gates, values = times(rows, gate), times(rows, up)
            active = native.gate(gates, values) if native.suits(gates, values) else silu(gates).mul_(values)
            outs.append(times(active, down))
            kept += [gates, values] if any(ctx.needs_input_grad) else []
        ctx.save_for_backward(x, gate, up, down, *kept)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, *kept = ctx.saved_tensors
        size, slopes = rows_at_once(len(gate), x.device), []
        sums: list[Tensor | None] = [None] * 3
        for number, (rows, slope) in enumerate(zip(x.split(size), grad.split(size), strict=True)):
            gates, values = kept[2 * number : 2 * number + 2]
            made, dgates, dvalues = _gate_backward(gates, values, times(slope, down.T, spaced=True))
            for i, (a, b) in enumerate(((dgates, rows), (dvalues, rows), (slope, made))):
                if ctx.needs_input_grad[1 + i]:
                    sums[i] = add_times(sums[i], a, b)
            slopes.append(times(dgates, gate.T, times(dvalues, up.T)))
        dx = slopes[0] if len(slopes) == 1 else torch.cat(slopes)
        return dx, *(None if s is None else s.to(x.dtype) for s in sums), None


def _gate_backward(gates: Tensor, values: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gates) * values once more, and the gradients of gates and values. `slope`'s memory is used."""
    if native.suits(gates, values, slope):
        return native.gate_backward(gates, values, slope)
    active = silu(gates)
    dvalues = slope * active
    return active.mul_(values), torch.ops.aten.silu_backward(slope.mul_(values), gates), dvalues
