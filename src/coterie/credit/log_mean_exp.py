"""OPMD's baseline: the soft maximum of the group's rewards at temperature tau (arXiv:2509.24203)."""

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_extreme, group_is_constant, group_mean


@credit(paper="arXiv:2509.24203", min_group=2)
def log_mean_exp(rewards: Tensor, groups: Tensor, *, tau: float = 1.0) -> Tensor:
    """Reward minus tau log mean exp(R / tau) over its group. [B] -> [B]

    tau -> infinity is the group mean, tau -> 0 the group maximum. A group of equal rewards gets exactly 0.
    """
    top = group_extreme(rewards, groups, largest=True)
    soft = top + tau * group_mean(((rewards - top) / tau).exp(), groups).log()
    return torch.where(group_is_constant(rewards, groups), torch.zeros_like(rewards), rewards - soft)
