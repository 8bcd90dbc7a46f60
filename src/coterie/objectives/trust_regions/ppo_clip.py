"""The clipped surrogate of PPO, with separate bounds (DAPO's clip-higher) and an optional dual clip."""

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(paper="arXiv:1707.06347", zero_without_advantage=True)
def ppo_clip(
    ratio: Tensor,
    advantages: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """min(r A, clip(r, 1-eps_low, 1+eps_high) A), to be maximised. [B,T] or [B], as the ratio

    dual: for A < 0 the surrogate is also bounded below by dual * A (arXiv:1912.09729), so one absurd ratio cannot
    dominate; must be > 1. A [B] ratio needs [B] advantages.
    """
    if dual is not None and dual <= 1:
        raise RecipeError(f"ppo_clip's dual is a bound above 1, got {dual:g}", hint="3 is usual; null switches it off")
    a = match(ratio, advantages)
    low, high = 1.0 - eps_low, 1.0 + eps_high
    surrogate = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    if dual is not None:
        surrogate = torch.where(a < 0, torch.maximum(surrogate, dual * a), surrogate)
    r = ratio.detach()
    record("clip/fraction", ((a > 0) & (r > high)) | ((a < 0) & (r < low)))
    record("clip/low_fraction", (a < 0) & (r < low))
    record("clip/high_fraction", (a > 0) & (r > high))
    return surrogate
