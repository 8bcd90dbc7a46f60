"""DAST's reward, as UI-R1-E has it: as many tokens as a prompt is hard (arXiv:2503.04472, arXiv:2503.21620)."""

import torch
from torch import Tensor

from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme, group_mean, group_sum


@shaping(paper="arXiv:2503.04472")
def length_budget(
    rewards: Tensor,
    groups: Tensor,
    lengths: Tensor,
    correct: Tensor | None = None,
    *,
    top: float | None = None,
    bonus: float = 0.5,
    slope: float = 0.5,
    haste: float = 0.9,
    least: float = 0.1,
) -> Tensor:
    """Rewards with a bonus for right rollouts, less for long ones, and a malus for wrong ones, more for short ones.
    [B] -> [B]

    A prompt's budget is p * (mean length of the right ones) + (1 - p) * (greatest length), where p is the share of its
    group that is right. With over = (length - budget) / budget a right rollout gets max(bonus - slope * over, least) on
    top, and a wrong one loses least, and haste * -over where it is below the budget. A rollout is right with a reward
    of `top` or more, by default where the verifier accepts. Where nobody is right the budget is the greatest length, so
    that longer attempts are better; over is 0 where the budget is 0.
    """
    if top is not None:
        right = rewards >= top
    elif correct is not None:
        right = correct
    else:
        raise RewardError(
            "length_budget reads the verifier's verdict, and the task has no verifier",
            hint="rewards.shaping.length_budget.top=3.0, the reward of a right rollout",
        )
    length, won = lengths.to(rewards.dtype), right.to(rewards.dtype)
    share = group_mean(won, groups)
    typical = group_sum(length * won, groups) / group_sum(won, groups).clamp_min(1)
    budget = share * typical + (1 - share) * group_extreme(length, groups, largest=True)
    over = torch.where(budget > 0, (length - budget) / budget.clamp_min(1), torch.zeros_like(budget))
    record("length_budget/tokens", budget)
    record("length_budget/over", over)
    return rewards + torch.where(right, (bonus - slope * over).clamp_min(least), (haste * over).clamp_max(0.0) - least)
