"""HGPO's advantage: an action against those with ever more of its history in common (arXiv:2602.22817)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_count, returns_to_go, turn_exists


@credit(paper="arXiv:2602.22817", shape="B T", min_group=2)
def history_norm(
    groups: Tensor,
    step_rewards: Tensor,
    state_key: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    history: int = 2,
    gamma: float = 0.95,
    alpha: float = 1.0,
    drop_ties: float | None = None,
    scale: Literal["std", "none"] = "std",
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """Weighted mean of the normalised returns of a turn among those of its group with the same last 1, 2, … states.
    [B,U] -> [B,T]

    The return of a turn is the sum of its and later step_rewards, discounted by gamma. Level k compares turns whose
    last k states agree, the present one included; `history` is the most states before it. A level where a turn is alone
    does not vote; level k weighs (k + 1)^alpha. drop_ties: levels where the normalised return is no larger than this do
    not vote either (0 drops exact ties; None keeps them). state_key [B,U] names states, a negative one is of none.
    scale: "none" does not divide; eps is added to std and to the sum of weights. No vote, and decisions in no turn: 0.
    """
    there = turn_exists(turn, mask, step_rewards.shape[1])
    q = returns_to_go(step_rewards, there, gamma)
    known = there & (state_key >= 0)
    total, weight = torch.zeros_like(q), torch.zeros_like(q)
    owner = groups.unsqueeze(-1).expand_as(state_key)
    here = _labels(torch.stack([owner, state_key], -1))
    level, levels = here, torch.zeros_like(q)
    for k in range(1, min(history + 1, state_key.shape[1]) + 1):
        if k > 1:  # the last k states are the last k - 1 of the turn before, and the present one
            level = torch.cat([level[:, :1], _labels(torch.stack([level[:, :-1], here[:, 1:]], -1))], 1)
            known = torch.cat([torch.zeros_like(known[:, :1]), known[:, :-1] & known[:, 1:]], 1)
        if not bool(known.any()):
            break
        gain = torch.zeros_like(q).masked_scatter(
            known, group_norm(q[known], level[known], scale=scale, ddof=ddof, eps=eps)
        )
        size = torch.zeros_like(q).masked_scatter(known, group_count(level[known], q.dtype))
        votes = (size > 1) if drop_ties is None else (size > 1) & (gain.abs() > drop_ties)
        share = votes * float(k + 1) ** alpha
        total, weight, levels = total + share * gain, weight + share, levels + votes
    record("history/levels", levels, there)
    record("history/voted_share", (levels > 0).to(q.dtype), there)
    return at_turn(total / (weight + eps), turn, mask)


def _labels(pairs: Tensor) -> Tensor:
    """Numbers that equal pairs share. [B,U,2] -> [B,U] int"""
    return torch.unique(pairs.flatten(0, 1), dim=0, return_inverse=True)[1].view(pairs.shape[:2])
