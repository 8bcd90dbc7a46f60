"""LUFFY's surrogate: PPO's clip for the policy's own rollouts, shaped imitation for demonstrations (2504.14945)."""

import math

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(paper="arXiv:2504.14945", zero_without_advantage=True)
def policy_shaping(
    ratio: Tensor,
    advantages: Tensor,
    logp: Tensor,
    mask: Tensor,
    anchor: Tensor,
    *,
    gamma: float = 0.1,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> Tensor:
    """min(r A, clip(r, 1-eps_low, 1+eps_high) A), and p / (p + gamma) A for demonstrations; to be maximised. [B,T]

    p = exp(logp) is the importance ratio of a demonstration (`anchor`) whose author is taken to have been certain of
    each token. Nothing of it is detached or clipped: its slope by logp is f (1 - f) A with f = p / (p + gamma),
    greatest where p = gamma. gamma: the probability around which tokens are learned most, above 0. The column ratio
    says nothing of demonstrations. A ratio a rollout counts for each of its decisions.
    """
    if gamma <= 0:
        raise RecipeError(
            f"policy_shaping's gamma is a probability above 0, got {gamma:g}",
            hint="0.1 is usual; at 0 nothing is learned from demonstrations",
        )
    shown = per_decision(anchor, mask) & mask
    r = per_decision(ratio, mask)
    a = match(r, advantages)
    clipped = torch.minimum(r * a, r.clamp(1.0 - eps_low, 1.0 + eps_high) * a)
    weight = torch.sigmoid(finite_or_zero(logp, shown) - math.log(gamma))
    now, own = r.detach(), mask & ~shown
    record("clip/fraction", ((a > 0) & (now > 1.0 + eps_high)) | ((a < 0) & (now < 1.0 - eps_low)), own)
    record("luffy/probability", finite_or_zero(logp.detach(), shown).exp(), shown)
    record("luffy/weight", weight, shown)
    return torch.where(shown, weight * a, clipped)
