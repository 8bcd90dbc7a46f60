"""LayerTuning-RL: the velocity of the group's best path as a target on the way (arXiv:2509.23352)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import term
from coterie.reductions import group_extreme


@term(paper="arXiv:2509.23352", whole_groups=True, min_group=2)
def best_path(
    best_gap: Tensor,
    rewards: Tensor,
    groups: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    coef: float = 1e-4,
    above: float | None = None,
    sensitivity: float = 0.0,
) -> Tensor:
    """coef * w * |v - v_best|^2 of every decision, a mean over its numbers, added to the loss. [B,T]. Gradient flows
    through best_gap, in which v_best is a number; w takes none.

    v_best: velocity in the same step on the path of the group's highest reward, by the policy before the update. above:
    only groups whose best rollout in the update has more reward than this, or the best of bad ones would be imitated.
    sensitivity: w = 2 sigmoid(-sensitivity A), from 2 where things went badly, through 1 at the mean, to 0 where well;
    with 0 it is 1. advantage_clip does the opposite: what is free to move on its own is pulled least.
    """
    w = 2 * torch.sigmoid(-sensitivity * per_decision(advantages, mask).detach())
    value = finite_or_zero(best_gap, mask)
    if above is not None:
        good = group_extreme(rewards, groups, largest=True) > above
        value = value * good.unsqueeze(-1)
    record("best_path/gap", value)
    record("best_path/weight", w)
    return coef * w * value
