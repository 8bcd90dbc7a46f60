"""PAMA's advantage: what all rewards agree on, by simplex weights in closed form (arXiv:2508.07768)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.credit.decoupled_norm import z_score
from coterie.metrics import record
from coterie.pieces import credit


@credit(paper="arXiv:2508.07768", min_group=2)
def pareto_norm(
    components: Mapping[str, Tensor],
    reward_weights: Mapping[str, float],
    groups: Tensor,
    *,
    negative: bool = False,
    ddof: int = 1,
    eps: float = 1e-4,
) -> Tensor:
    """The convex combination of the rewards' own advantages that is nearest to 0. [B] -> [B]

    Each component of weight other than 0 has its group z-score, multiplied by the sign of its weight. The nearest
    combination is the smallest of them where all are positive, the largest where all are negative, and 0 where their
    signs differ. negative=False first cuts them at 0 from below, so that nothing is pushed down. A component that is
    not given (NaN), or equal throughout the group, has no say there; where none has, the advantage is 0.
    """
    first = next(iter(components.values()))
    low, high = torch.full_like(first, torch.inf), torch.full_like(first, -torch.inf)
    for name, value in components.items():
        if reward_weights[name] != 0:
            z, heard = z_score(value if reward_weights[name] > 0 else -value, groups, ddof, eps)
            low = torch.where(heard, torch.minimum(low, z), low)
            high = torch.where(heard, torch.maximum(high, z), high)
    some = low <= high
    record("pama/conflict_share", (low < 0) & (high > 0), some)
    out = low.clamp_min(0.0) + high.clamp_max(0.0) if negative else low.clamp_min(0.0)
    return torch.where(some, out, torch.zeros_like(out))
