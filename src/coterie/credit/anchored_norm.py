"""GRAO's advantages: rollouts against each other, the reference answer against the rollouts (arXiv:2508.07750)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_extreme, group_sum


@credit(paper="arXiv:2508.07750", min_group=2)
def anchored_norm(
    rewards: Tensor,
    groups: Tensor,
    anchor: Tensor,
    *,
    beta: float = 0.5,
    lam: float = 0.6,
    cap: float = 3.0,
    ddof: int = 0,
    eps: float = 1e-8,
) -> Tensor:
    """(R - mean) / (std + eps) with mean and std of the group's rollouts without the anchor, weighted as GRAO's terms.
    [B] -> [B]

    Rollouts are scaled by (1 + lam) n / m and anchors by beta n, where the group has n rows and m rollouts, so that the
    mean over its rows is GRAO's objective: (1 + lam) mean A log p + beta A_y log p_y. An anchor's A_y is limited to
    +-`cap` before that, where the rollouts are all equal too: that is when an answer is needed most. Rollouts that are
    all equal, and anchors without rollouts or as good as they are, get exactly 0.
    """
    own = (~anchor).to(rewards.dtype)
    n, m = group_count(groups, rewards.dtype), group_sum(own, groups)
    top = group_extreme(rewards.masked_fill(anchor, -torch.inf), groups, largest=True)
    bottom = group_extreme(rewards.masked_fill(anchor, torch.inf), groups, largest=False)
    flat = top == bottom
    mean = torch.where(flat, top, group_sum(own * rewards, groups) / m.clamp_min(1.0))
    away = torch.where(m > 0, rewards - mean, torch.zeros_like(mean))
    variance = group_sum(own * away**2, groups) / (m - ddof).clamp_min(1.0)
    a = away / (variance.sqrt() + eps)
    record("grao/flat_share", flat.to(rewards.dtype))
    record("grao/anchor_advantage", a.clamp(-cap, cap), anchor)
    sampled = torch.where(flat | (m == 0), torch.zeros_like(a), a) * (1.0 + lam) * n / m.clamp_min(1.0)
    return torch.where(anchor, a.clamp(-cap, cap) * beta * n, sampled)
