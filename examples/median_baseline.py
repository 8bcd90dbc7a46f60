"""A credit piece of one's own, in one file: the group's median as the baseline.

Use it without installing anything:

    coterie train --task sort --model '{init: {layers: 2}}' credit.baseline=examples/median_baseline.py:median_baseline
"""

import torch
from torch import Tensor

from coterie.pieces import credit


@credit()
def median_baseline(rewards: Tensor, groups: Tensor, *, power: float = 1.0) -> Tensor:
    """Reward minus the (lower) median of its group, with the distance raised to a power. [B] -> [B]"""
    same = groups.unsqueeze(0) == groups.unsqueeze(1)
    in_group = torch.where(same, rewards.unsqueeze(0), torch.inf).sort(-1).values
    middle = (same.sum(-1, keepdim=True) - 1) // 2
    distance = rewards - in_group.gather(-1, middle).squeeze(-1)
    return distance.sign() * distance.abs() ** power
