"""TP-GRPO's advantage: thoughts, runs of right or of wrong steps, against the group's thoughts (arXiv:2507.23317)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_mean, turn_count


@credit(paper="arXiv:2507.23317", shape="B T", min_group=2)
def thought_norm(
    step_rewards: Tensor,
    turn: Tensor,
    mask: Tensor,
    rewards: Tensor,
    groups: Tensor,
    correct: Tensor | None = None,
    *,
    threshold: float = 0.5,
    blame: float | None = None,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """A rollout's normalised reward plus, for each decision, the normalised value of the thought it is in. [B,T]

    A step is right where its reward is above `threshold`; neighbours of one kind make a thought, so that cutting a
    thought into more steps earns nothing. A right thought is worth 1, a wrong one -1, and in a rollout whose outcome is
    right -blame: by default the group's share of right outcomes, so that errors cost little where the task is hard.
    Values are normalised over all thoughts of the group, rewards over the group; ddof and eps are of both. An outcome
    is right by the verifier, or with a reward above 0 where the task has none. All equal gives exactly 0.
    """
    won = correct if correct is not None else rewards > 0
    there = torch.arange(step_rewards.shape[1], device=turn.device) < turn_count(turn, mask).unsqueeze(-1)
    right = step_rewards > threshold
    begins = there.clone()
    begins[:, 1:] &= right[:, 1:] != right[:, :-1]
    cost = group_mean(won.to(rewards.dtype), groups) if blame is None else torch.full_like(rewards, blame)
    wrong = torch.where(won, -cost, -torch.ones_like(cost)).unsqueeze(-1)
    value = torch.where(right, torch.ones_like(wrong), wrong).to(step_rewards.dtype)
    owner = groups.unsqueeze(-1).expand_as(begins)
    outcome = group_norm(rewards, groups, ddof=ddof, eps=eps)
    record("thoughts/count", begins.sum(-1).to(rewards.dtype))
    record("thoughts/right_share", right.to(rewards.dtype), begins)
    out = finite_or_zero(per_decision(outcome, mask), mask)
    if not bool(begins.any()):
        return out
    of_thought = group_norm(value[begins], owner[begins], ddof=ddof, eps=eps)
    number = (begins.flatten().cumsum(0) - 1).clamp_min(0).view_as(begins)
    return out + at_turn(torch.where(there, of_thought[number], 0.0), turn, mask).to(out.dtype)
