"""Unlikeliness reward: of the rollouts that are right, the rare ones are worth more (arXiv:2506.02355)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_count, group_rank, masked_mean, masked_sum


@shaping(paper="arXiv:2506.02355")
def unlikeliness(
    rewards: Tensor,
    groups: Tensor,
    logp_old: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.25,
    likelihood: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Positive rewards times 1 - beta rank/n, rank 0 for the least likely rollout of the group of n. [B] -> [B]

    likelihood: rollouts are ranked by the "mean" or the "sum" of their log-probs when sampled; equally likely ones
    share their mean rank. Wrong rollouts are ranked too, but rewards of 0 and below stay as they are.
    """
    score = (masked_mean if likelihood == "mean" else masked_sum)(logp_old, mask)
    rank = group_rank(score, groups).to(rewards.dtype) / group_count(groups, rewards.dtype)
    rewarded = rewards > 0
    record("unlikeliness/rewarded_rank", rank, rewarded)
    return torch.where(rewarded, rewards * (1 - beta * rank), rewards)
