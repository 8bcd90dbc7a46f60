"""SAPO's soft gate in place of a clip: decisions fade out as their ratio leaves 1 (arXiv:2511.20347)."""

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(paper="arXiv:2511.20347", zero_without_advantage=True)
def soft_gate(ratio: Tensor, advantages: Tensor, *, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Tensor:
    """4/tau sigmoid(tau (r - 1)) A, to be maximised. [B,T] or [B], as the ratio

    tau is tau_pos where A > 0, else tau_neg; the larger, the narrower the gate. The gradient is 4 p (1 - p) r A by
    logp, with p = sigmoid(tau (r - 1)): r A on policy, and ever less on both sides. Nothing but A is detached. The
    value at r = 1 is 2/tau A, so values of different taus or losses do not compare.
    """
    for name, width in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if width <= 0:
            raise RecipeError(
                f"soft_gate's {name} must be above 0, got {width:g}",
                hint="objective.trust_region=unclipped is its limit at 0",
            )
    a = match(ratio, advantages)
    tau = torch.where(a > 0, torch.full_like(a, tau_pos), torch.full_like(a, tau_neg))
    p = torch.sigmoid(tau * (ratio - 1))
    gate = 4 * p.detach() * (1 - p.detach())
    record("gate/mean", gate)
    record("gate/closed_share", (gate < 0.5).to(gate.dtype))
    return 4 / tau * p * a
