"""NGRPO's advantage: the group is measured with perfect rollouts that nobody took (arXiv:2509.18851)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_sum


@credit(paper="arXiv:2509.18851")
def virtual_max_norm(
    rewards: Tensor,
    groups: Tensor,
    *,
    reward_max: float = 1.0,
    count: int = 1,
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """Reward minus the mean, over the standard deviation, of its group and `count` rewards of reward_max. [B] -> [B]

    scale: "std" divides by that standard deviation + eps, "none" does not divide. A group of n equal rewards below
    reward_max gets a negative advantage, -1/sqrt(n+1) for count=1; a group of reward_max alone gets exactly 0. With
    count=0 it is group_norm.
    """
    n = group_count(groups, rewards.dtype) + count
    mean = (group_sum(rewards, groups) + count * reward_max) / n
    centred = rewards - mean
    same = group_is_constant(rewards, groups)
    alone = same if count == 0 else same & (rewards == reward_max)
    centred = torch.where(alone, torch.zeros_like(centred), centred)
    record("credit/revived_share", (same & ~alone).to(rewards.dtype))
    if scale == "none":
        return centred
    squares = group_sum((rewards - mean) ** 2, groups) + count * (reward_max - mean) ** 2
    return centred / ((squares / (n - ddof).clamp_min(1.0)).sqrt() + eps)
