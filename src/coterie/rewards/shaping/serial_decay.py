"""S-GRPO's reward: of the right answers along one line of thought, the earlier are worth more (arXiv:2505.07686)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_position


@shaping(paper="arXiv:2505.07686")
def serial_decay(
    rewards: Tensor,
    groups: Tensor,
    branch: Tensor,
    correct: Tensor | None = None,
    *,
    decay: float = 0.5,
    metric: Literal["auto", "correct", "rewards"] = "auto",
) -> Tensor:
    """decay^(k-1) for the k-th right answer of the group in order of exit, 0 for wrong ones. [B] -> [B]

    The exit is the decision at which a rollout left the line of thought (branch); one that never did comes last. Equal
    exits come in order of row. A wrong answer does not count on. metric: an answer is right by the verifier
    ("correct"), by a reward above 0 ("rewards"), or by the verifier where the task has one ("auto"). decay=1 is the
    plain 0/1 reward.
    """
    if metric == "correct" and correct is None:
        raise RewardError("serial_decay reads metric=correct, but the task has no verifier", hint="metric=rewards")
    won = correct if correct is not None and metric != "rewards" else rewards > 0
    exits = torch.where(branch < 0, torch.full_like(branch, torch.iinfo(branch.dtype).max), branch)
    before = group_position(exits, groups * 2 + won)
    early = won & (branch >= 0)
    record("exits/right_share", early.to(rewards.dtype), branch >= 0)
    return torch.where(won, decay ** before.to(rewards.dtype), torch.zeros_like(rewards))
