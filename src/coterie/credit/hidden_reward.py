"""THR: decisions are told apart by what they do to the group's correct rollouts (arXiv:2510.03669)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_extreme, masked_mean


@credit(paper="arXiv:2510.03669", min_group=2, shape="B T")
def hidden_reward(
    advantages: Tensor,
    influence: Tensor,
    correct: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    p: float = 0.1,
    beta: float = 1.0,
    small: Literal["drop", "keep"] = "drop",
) -> Tensor:
    """Advantages times 1 + p or 1 - p, by the sign of the decision's hidden reward. [B] or [B,T] -> [B,T]

    The hidden reward is sign(advantage) * influence: positive where the update of this decision makes the group's
    correct rollouts more likely. p > 0 favours those (exploitation), p < 0 the others (exploration). Decisions of
    little influence, |influence| <= beta times the smallest mean influence that a correct rollout of the group has,
    get nothing (small: "drop") or keep their advantage ("keep"). A group without a correct rollout is left alone.
    """
    a = per_decision(advantages, mask)
    own = torch.where(correct & mask.any(-1), masked_mean(influence, mask), torch.inf)
    anchor = group_extreme(own, groups, False).clamp_min(0.0)
    known = mask & anchor.isfinite().unsqueeze(-1)
    large = known & (influence.abs() > beta * torch.where(anchor.isfinite(), anchor, 0.0).unsqueeze(-1))
    sign = torch.where(large, a.sign() * influence.sign().to(a.dtype), 0.0)
    factor = torch.where(known & ~large, 0.0 if small == "drop" else 1.0, 1 + p * sign)
    record("thr/large_share", large.to(a.dtype), known)
    record("thr/positive_share", (sign > 0).to(a.dtype), large)
    return torch.where(mask, a * factor, 0.0)
