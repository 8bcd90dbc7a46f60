"""Test-time RL's reward: agreeing with the answer that most rollouts of the group give (TTRL, arXiv:2504.16084)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_count, group_extreme


@shaping(paper="arXiv:2504.16084")
def majority_vote(
    rewards: Tensor, answers: Tensor, groups: Tensor, correct: Tensor | None = None, *, leave_out: bool = False
) -> Tensor:
    """1 for rollouts whose answer is the most frequent of their group, 0 for others, in place of the reward. [B]

    An answer must be given at least twice; where several are given equally often all of them win, so a tie has no
    direction. leave_out: a rollout's own vote does not count for it, so it must agree with the majority of the others.
    The verifier's verdict, where there is one, is only recorded.
    """
    _, answer = torch.unique(torch.stack([groups, answers], 1), dim=0, return_inverse=True)
    votes = group_count(answer, rewards.dtype)
    most = group_extreme(votes, groups, largest=True)
    winner = (votes == most) & (votes >= 2)
    if leave_out:
        second = group_extreme(torch.where(votes == most, torch.zeros_like(votes), votes), groups, largest=True)
        first = group_extreme(answer.masked_fill(~winner, len(answer)), groups, largest=False)
        last = group_extreme(answer.masked_fill(~winner, -1), groups, largest=True)
        winner &= (first == last) & (votes - 1 >= second)
    record("vote/share", most / group_count(groups, rewards.dtype))
    record("vote/reward", winner.to(rewards.dtype))
    if correct is not None:
        record("vote/accuracy", correct.to(rewards.dtype), winner)
    return winner.to(rewards.dtype)
