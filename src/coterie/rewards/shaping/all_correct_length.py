"""L-GRPO's reward: length counts only where every rollout of the prompt is right (ConciseR, arXiv:2505.21178)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme


@shaping(paper="arXiv:2505.21178")
def all_correct_length(
    rewards: Tensor, groups: Tensor, correct: Tensor, lengths: Tensor, budget: int, *, max_length: int | None = None
) -> Tensor:
    """Rewards times 1 - length / max_length in groups all correct, others unchanged. [B] -> [B]

    max_length defaults to the completion budget of the run; a longer rollout counts as that long.
    """
    all_correct = group_extreme(correct.to(rewards.dtype), groups, largest=False) > 0
    longest = budget if max_length is None else max_length
    record("l_grpo/all_correct_share", all_correct.to(rewards.dtype))
    saved = 1 - (lengths.to(rewards.dtype) / longest).clamp(max=1.0)
    return torch.where(all_correct, rewards * saved, rewards)
