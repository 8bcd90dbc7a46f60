"""MSSR's shaping: decisions taken in doubt get a bounded bonus of their entropy (arXiv:2512.18215)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import credit


@credit(paper="arXiv:2512.18215", shape="B T")
def entropy_advantage(
    advantages: Tensor, entropy_old: Tensor, mask: Tensor, *, coef: float = 0.4, kappa: float = 2.0
) -> Tensor:
    """Advantages plus min(coef * H, |A| / kappa), H the decision's entropy when it was taken. [B] or [B,T] -> [B,T]

    With kappa above 1 no advantage changes its sign: a decision of a bad rollout is pushed down less where the policy
    was in doubt, one of a good rollout up more. H is a constant of the batch. An advantage of 0 stays 0.
    """
    a = per_decision(advantages, mask)
    entropy = finite_or_zero(entropy_old, mask).to(a.dtype)
    wished, cap = coef * entropy, finite_or_zero(a, mask).abs() / kappa
    bonus = torch.minimum(wished, cap)
    record("shaping/entropy_bonus", bonus, mask)
    record("shaping/capped_share", (wished > cap).to(a.dtype), mask)
    return torch.where(mask, a + bonus, torch.zeros_like(a))
