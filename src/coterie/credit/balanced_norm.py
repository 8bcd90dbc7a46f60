"""RED-Drop: where bad rollouts outnumber good ones, the surplus is left out at random (arXiv:2509.24203)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean, group_position, group_sum
from coterie.streams import stream


@credit(paper="arXiv:2509.24203", min_group=2)
def balanced_norm(rewards: Tensor, groups: Tensor, step: int, *, seed: int = 0) -> Tensor:
    """Reward minus the mean of a balanced part of its group, 0 for the rollouts that are not in that part. [B] -> [B]

    Good rollouts are those with the group's mean reward or more. Where there are more bad ones, as many as there are
    good ones stay, drawn anew at every step, and the mean is taken again over what stays. seed: of the draw. A group of
    equal rewards or of one gets exactly 0.
    """
    bad = rewards < group_mean(rewards, groups)
    count = group_sum(bad.to(rewards.dtype), groups)
    surplus = 2 * count - group_count(groups, rewards.dtype)
    generator = torch.Generator().manual_seed(stream(seed, "balanced-norm", step))
    drawn = torch.rand(len(rewards), generator=generator, dtype=torch.float64).to(rewards.device)
    kept = group_position(torch.where(bad, drawn, 2.0), groups) >= surplus  # the bad ones come first
    record("advantage/dropped_share", (~kept).to(rewards.dtype))
    live = kept.to(rewards.dtype)
    mean = group_sum(rewards * live, groups) / group_sum(live, groups)
    return torch.where(kept & ~group_is_constant(rewards, groups), rewards - mean, torch.zeros_like(rewards))
