"""PROF: keep the rollouts whose steps agree with their outcome, in balance of right and wrong (arXiv:2509.03403)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import filter
from coterie.reductions import group_position, group_sum, turn_count


@filter(paper="arXiv:2509.03403")
def process_consistency(
    correct: Tensor,
    groups: Tensor,
    step_rewards: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    drop: int = 4,
    side: Literal["both", "correct"] = "both",
    penalty: float = 10.0,
    min_steps: int = 2,
    max_steps: int = 30,
) -> Tensor:
    """0 for the `drop` rollouts of each group whose steps agree least with their outcome, 1 for others. [B] -> [B]

    step_rewards are probabilities that a step is right. A rollout's agreement is the mean of 2p - 1 over its steps,
    times -1 where its outcome is wrong, less `penalty` if it has fewer than min_steps or more than max_steps steps.
    Of right rollouts round((right - wrong + drop) / 2) go (half to even, within bounds), of wrong ones the rest, so
    that what stays is as balanced as it can be; the advantage is computed on that. side: "correct" removes wrong ones
    in order of row instead, whatever their steps are like. Equal ones go in order of row. drop=0 keeps all.
    """
    count = turn_count(turn, mask)
    there = torch.arange(step_rewards.shape[1], device=turn.device) < count.unsqueeze(-1)
    steps = count.clamp_min(1).to(step_rewards.dtype)
    belief = torch.where(there, 2 * step_rewards - 1, step_rewards.new_zeros(())).sum(-1) / steps
    sign = torch.where(correct, 1.0, -1.0 if side == "both" else 0.0).to(belief.dtype)
    odd = (count < min_steps) | (count > max_steps)
    agreement = belief * sign - penalty * (odd & (sign != 0)).to(belief.dtype)
    right, wrong = (group_sum(c.to(torch.float64), groups) for c in (correct, ~correct))
    of_right = ((right - wrong + drop) / 2).round().clamp_min(0).minimum(right.clamp_max(drop))
    place = group_position(agreement, groups * 2 + correct)
    dropped = place < torch.where(correct, of_right, drop - of_right)
    record("prof/agreement", belief * torch.where(correct, 1.0, -1.0).to(belief.dtype))
    record("prof/dropped_correct", dropped.to(belief.dtype), correct)
    record("prof/dropped_wrong", dropped.to(belief.dtype), ~correct)
    return (~dropped).to(step_rewards.dtype)
