"""XRPO's novelty sharpening: a bonus for rollouts that are right and unlikely (arXiv:2510.06672)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_mean, masked_mean


@credit(paper="arXiv:2510.06672")
def novelty_sharpening(
    advantages: Tensor,
    groups: Tensor,
    logp_old: Tensor,
    mask: Tensor,
    correct: Tensor | None = None,
    *,
    strength: float = 1.0,
    cap: float = 1.0,
) -> Tensor:
    """Advantages plus min(strength (1 - eta), cap A) where A > 0 and eta < 1. [B] or [B,T] -> the same

    eta is the rollout's likelihood over that of its group: exp(s - mean s), s the mean log-prob of its decisions when
    sampled. Only positive advantages are sharpened, and where the task has a verifier only correct rollouts, so a
    rare mistake gains nothing; an advantage of 0 stays 0.
    """
    score = masked_mean(logp_old, mask)
    novelty = (1 - (score - group_mean(score, groups)).exp()).clamp_min(0.0)
    if correct is not None:
        novelty = torch.where(correct, novelty, torch.zeros_like(novelty))
    wished = strength * in_shape_of(novelty.to(advantages.dtype), advantages)
    bonus = torch.minimum(wished, cap * advantages.clamp_min(0.0))
    live = None if advantages.dim() == 1 else mask
    record("xrpo/sharpened_share", (bonus > 0).to(advantages.dtype), live)
    record("xrpo/bonus", bonus, live)
    return advantages + bonus
