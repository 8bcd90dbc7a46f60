"""RLOO's advantage: a reward minus the mean of the others in its group (Back to Basics, arXiv:2402.14740)."""

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean


@credit(paper="arXiv:2402.14740", min_group=2)
def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Reward minus the mean reward of the group's other rollouts, n/(n-1) (R - mean). [B] -> [B]

    A group of equal rewards gets exactly 0, and so does a group of one, which has nobody to be compared with.
    """
    n = group_count(groups, rewards.dtype)
    advantages = (rewards - group_mean(rewards, groups)) * n / (n - 1).clamp_min(1.0)
    return torch.where(group_is_constant(rewards, groups), torch.zeros_like(advantages), advantages)
