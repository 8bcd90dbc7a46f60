"""DCPO's clip, wider for decisions that were unlikely (arXiv:2509.02333)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region
from coterie.reductions import masked_mean


@trust_region(paper="arXiv:2509.02333", zero_without_advantage=True)
def probability_clip(
    ratio: Tensor,
    advantages: Tensor,
    logp_old: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    cap: float = 10.0,
) -> Tensor:
    """min(r A, clip(r, lo, hi) A), at least cap * A where A < 0; to be maximised. [B,T] or [B], as the ratio

    lo and hi are where |r - 1| r p = eps_low and eps_high, with p = exp(logp_old): the bound is on the change weighted
    by the probability, not on the ratio. hi is at most `cap`, lo at least 1/2. A ratio a rollout takes p as the
    geometric mean over its decisions. Bounds are not differentiated.
    """
    a = match(ratio, advantages)
    surprise = -(finite_or_zero(logp_old, mask) if ratio.dim() == 2 else masked_mean(logp_old, mask)).clamp_max(0.0)
    inverse = surprise.clamp_max(30.0).exp()  # 1/p, finite in every dtype
    low = (1 + (1 - 4 * eps_low * inverse).clamp_min(0.0).sqrt()) / 2
    high = ((1 + (1 + 4 * eps_high * inverse).sqrt()) / 2).clamp_max(cap)
    surrogate = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    surrogate = torch.where(a < 0, torch.maximum(surrogate, cap * a), surrogate)
    r = ratio.detach()
    record("clip/fraction", ((a > 0) & (r > high)) | ((a < 0) & ((r < low) | (r > cap))))
    record("dcpo/low", low)
    record("dcpo/high", high)
    return surrogate
