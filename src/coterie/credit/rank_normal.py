"""Gaussian GRPO's advantage: the group's rewards moved onto the standard normal (arXiv:2604.08539)."""

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean, group_position, group_ties


@credit(paper="arXiv:2604.08539", min_group=2)
def rank_normal(rewards: Tensor, groups: Tensor) -> Tensor:
    """The normal quantile at the middle of each reward's rank, (k - 1/2)/n for the k-th of n. [B] -> [B]

    This is the optimal transport of the group's rewards to N(0,1): only their order counts. Equal rewards share the
    mean of their quantiles, so a group sums to 0. A group of equal rewards or of one gets exactly 0.
    """
    n = group_count(groups, rewards.dtype)
    quantile = torch.special.ndtri((group_position(rewards, groups).to(rewards.dtype) + 0.5) / n)
    shared = group_mean(quantile, group_ties(rewards, groups))
    return torch.where(group_is_constant(rewards, groups), torch.zeros_like(shared), shared)
