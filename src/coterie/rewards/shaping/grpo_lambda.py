"""GRPO-lambda: only the prompts answered best are asked for shorter answers (arXiv:2505.18086)."""

import math

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme, group_mean, group_position, group_sum


@shaping(paper="arXiv:2505.18086")
def grpo_lambda(
    rewards: Tensor, groups: Tensor, correct: Tensor, lengths: Tensor, *, share: float = 0.2, alpha: float = 0.2
) -> Tensor:
    """Rewards of correct rollouts times 1 - alpha sigmoid(z) in the best groups, others unchanged. [B] -> [B]

    The best groups are the `share` of the batch (rounded up) with the highest rate of correct rollouts, the first ones
    where rates are equal. z is the rollout's length, standardised over the correct rollouts of its group (ddof 0; 0
    where they are equally long). share = 0 or alpha = 0 changes nothing.
    """
    right = correct.to(rewards.dtype)
    row = torch.arange(len(rewards), dtype=rewards.dtype, device=rewards.device)
    heads = (group_position(row, groups) == 0).nonzero().squeeze(-1)
    number = math.ceil(share * len(heads) - 1e-9)
    best = heads[group_mean(right, groups)[heads].argsort(descending=True, stable=True)[:number]]
    chosen = group_extreme(torch.zeros_like(right).index_fill(0, best, 1.0), groups, largest=True) > 0

    count = group_sum(right, groups).clamp_min(1.0)
    centred = lengths.to(rewards.dtype) - group_sum(right * lengths, groups) / count
    std = (group_sum(right * centred**2, groups) / count).sqrt()
    z = torch.where(std > 0, centred / std, torch.zeros_like(std))
    shortened = chosen & correct
    record("grpo_lambda/shortened_share", shortened.to(rewards.dtype))
    return torch.where(shortened, rewards * (1 - alpha * z.sigmoid()), rewards)
