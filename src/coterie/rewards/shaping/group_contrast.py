"""GCPO's masked bonus: a habit is rewarded on prompts where it helps and punished where it harms (arXiv:2506.07160)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_sum


@shaping(paper="arXiv:2506.07160")
def group_contrast(
    rewards: Tensor,
    groups: Tensor,
    correct: Tensor,
    lengths: Tensor,
    components: Mapping[str, Tensor],
    budget: int,
    *,
    habit: str = "auxiliary",
    weight: float = 0.5,
    margin: float = 0.0,
    length_weight: float = 0.5,
    max_length: int | None = None,
) -> Tensor:
    """Rewards plus weight * M where a rollout has the habit, plus length_weight * length / max_length. [B] -> [B]

    habit: a reward component that is 1 for rollouts with the habit (an auxiliary construction in the paper) and 0 or
    not given for others. M is +1 on prompts where those with it are right more often than those without by more than
    `margin`, -1 where less often by more than that, else 0, and 0 where nobody or everybody has it. max_length defaults
    to the completion budget of the run; a longer rollout counts as that long.
    """
    with_it = (component(components, habit, "group_contrast") > 0.5).to(rewards.dtype)
    without, right = 1 - with_it, correct.to(rewards.dtype)
    some, others = group_sum(with_it, groups), group_sum(without, groups)
    gain = group_sum(right * with_it, groups) / some.clamp_min(1) - group_sum(
        right * without, groups
    ) / others.clamp_min(1)
    mask = torch.where((gain.abs() > margin) & (some > 0) & (others > 0), gain.sign(), torch.zeros_like(gain))
    record("gcpo/habit_share", with_it)
    record("gcpo/mask", mask)
    longest = budget if max_length is None else max_length
    long = (lengths.to(rewards.dtype) / longest).clamp(max=1.0)
    return rewards + weight * mask * with_it + length_weight * long
