"""DHPO: a mixture of the token's ratio and the sequence's, each clipped in a region of its own (arXiv:2601.05607)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.ratios.sequence import sequence
from coterie.objectives.ratios.token import token
from coterie.pieces import loss
from coterie.reductions import group_extreme


@loss(paper="arXiv:2601.05607", whole_groups=True, zero_without_advantage=True)
def hybrid_clip(
    logp: Tensor,
    logp_old: Tensor,
    entropy_old: Tensor,
    advantages: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    mix: Literal["entropy", "constant"] = "entropy",
    share: float = 0.5,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    sequence_low: float = 3e-4,
    sequence_high: float = 4e-4,
) -> Tensor:
    """-min(M A, M' A), to be minimised, with M = w r + (1 - w) s and M' the same of the clipped ratios. [B,T]

    r is the decision's ratio, clipped to 1-eps_low .. 1+eps_high, and s its rollout's, clipped to 1-sequence_low ..
    1+sequence_high. w is detached: `share` with mix="constant"; with mix="entropy" the decision's entropy when it was
    taken over the largest of its group, so that uncertain decisions look at themselves and sure ones at the rollout
    (0 where all entropies are 0). w = 1 is GRPO, w = 0 GSPO. Decisions without weight are not in s.
    """
    live = mask & (per_decision(weights, mask) != 0)
    a = finite_or_zero(per_decision(advantages, mask), live)
    r = token(logp, logp_old, live)
    s = per_decision(sequence(logp, logp_old, live), mask)
    if mix == "entropy":
        doubt = finite_or_zero(entropy_old, live).clamp_min(0.0)
        most = per_decision(group_extreme(doubt.amax(-1), groups, largest=True), mask)
        w = torch.where(most > 0, doubt / torch.where(most > 0, most, torch.ones_like(most)), torch.zeros_like(doubt))
    else:
        w = torch.full_like(r, share).detach()
    near_r, near_s = r.clamp(1 - eps_low, 1 + eps_high), s.clamp(1 - sequence_low, 1 + sequence_high)
    record("dhpo/token_share", w)
    record("clip/token_fraction", r != near_r)
    record("clip/sequence_fraction", s != near_s)
    return -torch.minimum((w * r + (1 - w) * s) * a, (w * near_r + (1 - w) * near_s) * a)
