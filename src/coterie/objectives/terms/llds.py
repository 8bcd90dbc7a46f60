"""LLDS: good actions must not become less likely by the way (arXiv:2512.04220)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import term
from coterie.reductions import group_sum


@term(paper="arXiv:2512.04220")
def llds(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.2,
    gate: Literal["action", "rollout", "decision"] = "action",
) -> Tensor:
    """coef * max(0, logp_old - logp) of decisions with A >= 0 in actions that lost likelihood, added to the loss. [B,T]

    gate: "action" is an unbroken run of such decisions (what a tool wrote between two parts them), "rollout" all those
    of a rollout, "decision" each for itself. A gate is open where the sum of logp_old - logp over it is above 0, which
    is detached. Gradient through logp: -coef where it acts. It is 0 on policy. A = 0 is protected too, so groups of
    equal rewards are, which the surrogate itself leaves alone.
    """
    good = mask & (per_decision(advantages, mask) >= 0)
    lost = finite_or_zero(logp_old - logp, good)
    fresh = good.clone()
    fresh[:, 1:] &= ~good[:, :-1]
    number = {"action": fresh.cumsum(-1), "rollout": torch.zeros_like(fresh).long(), "decision": good.cumsum(-1)}[gate]
    label = number + torch.arange(len(mask), device=mask.device).unsqueeze(-1) * (mask.shape[1] + 1)
    open_ = torch.zeros_like(mask).masked_scatter(good, group_sum(lost.detach()[good], label[good]) > 0)
    value = coef * lost.clamp_min(0.0) * open_
    record("llds/acting_share", (value.detach() > 0).to(logp.dtype))
    record("llds/lost", value.detach() / coef if coef else value.detach())
    return value
