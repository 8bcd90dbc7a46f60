"""BAPO's clip, whose bounds open until what pushes up weighs as much as what pushes down (arXiv:2510.18927)."""

import math

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region
from coterie.reductions import group_sum


@trust_region(paper="arXiv:2510.18927", whole_groups=True, zero_without_advantage=True)
def balanced_clip(
    ratio: Tensor,
    advantages: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    target: float = 1.0,
    low: float = 0.6,
    low_max: float = 0.8,
    low_step: float = 0.05,
    high: float = 1.2,
    high_max: float = 2.0,
    high_step: float = 0.05,
    dual: float | None = 3.0,
) -> Tensor:
    """min(r A, clip(r, lo_g, hi_g) A), at least dual * A where A < 0; to be maximised. [B,T] or [B], as the ratio

    Bounds are ratio values, one pair a group, detached. With c = min(r, hi) where A >= 0 and max(r, lo) where A < 0,
    the balance is the sum of c A over good decisions over that of -c A over bad ones. While it is below `target`, lo
    rises from `low` by low_step to low_max, so that more bad decisions are clipped; then hi from `high` by high_step to
    high_max, so that more good ones are not. A group without bad decisions keeps its first bounds.
    """
    if not (low_step > 0 and high_step > 0 and low <= low_max and high <= high_max):
        raise RecipeError("balanced_clip opens its bounds upwards: steps above 0, low <= low_max, high <= high_max")
    if dual is not None and dual <= 1:
        raise RecipeError(f"balanced_clip's dual is a bound above 1, got {dual:g}", hint="3 is usual; null is none")
    a = match(ratio, advantages)
    r = finite_or_zero(per_decision(ratio.detach(), mask), mask)
    credit = finite_or_zero(per_decision(a, mask), mask)
    good, bad = credit.clamp_min(0.0), (-credit).clamp_min(0.0)

    def short(lo: Tensor, hi: Tensor) -> Tensor:
        """Groups whose balance is below the target. [B] bool"""
        up = group_sum((good * torch.minimum(r, hi.unsqueeze(-1))).sum(-1), groups)
        down = group_sum((bad * torch.maximum(r, lo.unsqueeze(-1))).sum(-1), groups)
        return (down > 0) & (up < target * (down + 1e-8))

    lo, hi = torch.full_like(r[:, 0], low), torch.full_like(r[:, 0], high)
    for bound in _steps(low, low_max, low_step):
        lo = torch.where(short(lo, hi), torch.full_like(lo, bound), lo)
    for bound in _steps(high, high_max, high_step):
        hi = torch.where(short(lo, hi), torch.full_like(hi, bound), hi)

    record("bapo/low", lo)
    record("bapo/high", hi)
    record("bapo/short_share", short(lo, hi))
    record("clip/fraction", ((credit > 0) & (r > hi.unsqueeze(-1))) | ((credit < 0) & (r < lo.unsqueeze(-1))))
    if ratio.dim() == 2:
        lo, hi = lo.unsqueeze(-1), hi.unsqueeze(-1)
    surrogate = torch.minimum(ratio * a, ratio.clamp(lo, hi) * a)
    return surrogate if dual is None else torch.where(a < 0, torch.maximum(surrogate, dual * a), surrogate)


def _steps(start: float, end: float, step: float) -> list[float]:
    """The bounds after `start`, the last of them `end` exactly."""
    count = math.ceil(round((end - start) / step, 6))
    return [min(start + k * step, end) for k in range(1, count + 1)]
