"""MAPO's advantage: the return of a turn against the same turn of its group, and against all turns (2603.06194)."""

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_count, returns_to_go, turn_exists


@credit(paper="arXiv:2603.06194", shape="B T", min_group=2)
def turn_norm(
    step_rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """alpha times the return of the turn normalised over the group's turns of the same number, plus 1 - alpha times the
    return normalised over all turns of the update. [B,U] -> [B,T]

    The return of a turn is the sum of its and later step_rewards, discounted by gamma; ddof and eps are of both parts.
    A turn that no other episode of the group reached has 0 for the first part, and the second carries it. Equal returns
    give exactly 0, and so do decisions in no turn.
    """
    there = turn_exists(turn, mask, step_rewards.shape[1])
    returns = returns_to_go(step_rewards, there, gamma)
    if not bool(there.any()):
        return torch.zeros_like(mask, dtype=returns.dtype)
    number = torch.arange(there.shape[1], device=turn.device)
    place = (groups.unsqueeze(-1) * there.shape[1] + number)[there]
    own = group_norm(returns[there], place, ddof=ddof, eps=eps)
    batch = group_norm(returns[there], torch.zeros_like(place), ddof=ddof, eps=eps)
    record("turn/return", returns, there)
    record("turn/alone_share", (group_count(place) == 1).to(returns.dtype))
    steps = torch.zeros_like(returns).masked_scatter(there, alpha * own + (1 - alpha) * batch)
    return at_turn(steps, turn, mask)
