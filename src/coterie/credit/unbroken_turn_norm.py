"""UI-S1's advantage: a turn against its group, and its return up to the next mistake against the same turn of others
(arXiv:2509.11543)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_count, turn_exists, unbroken_returns


@credit(paper="arXiv:2509.11543", shape="B T", min_group=2)
def unbroken_turn_norm(
    step_rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    gamma: float = 0.5,
    exact: float = 0.9,
    episode: float = 1.0,
    step: float = 1.0,
    of: Literal["turn", "sum"] = "turn",
    lone: Literal["reward", "zero"] = "reward",
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """`episode` times a turn's reward normalised over all turns of its group, plus `step` times its return normalised
    over the group's turns of the same number. [B,U] -> [B,T]

    The return is discounted by gamma and reaches to the next turn whose reward is below `exact`: that one counts for
    itself alone. of: "sum" takes the sum of the episode's rewards in place of the turn's own. lone: what the first part
    of the only turn of a group is, its "reward" or "zero"; the second part of a turn that no other episode reached is
    0. scale, ddof and eps are of both parts. Equal values give exactly 0, and so do decisions in no turn.
    """
    there = turn_exists(turn, mask, step_rewards.shape[1])
    if not bool(there.any()):
        return torch.zeros_like(mask, dtype=step_rewards.dtype)
    rewards = torch.where(there, step_rewards, step_rewards.new_zeros(()))
    returns = unbroken_returns(step_rewards, there, gamma, exact)
    owner = groups.unsqueeze(-1).expand_as(there)[there]
    place = (groups.unsqueeze(-1) * there.shape[1] + torch.arange(there.shape[1], device=turn.device))[there]
    value = (rewards if of == "turn" else rewards.sum(-1, keepdim=True).expand_as(rewards))[there]
    whole = group_norm(value, owner, scale=scale, ddof=ddof, eps=eps)
    if lone == "reward":
        whole = torch.where(group_count(owner) == 1, value, whole)
    own = group_norm(returns[there], place, scale=scale, ddof=ddof, eps=eps)
    record("unbroken/exact_share", (rewards[there] >= exact).to(rewards.dtype))
    record("unbroken/return", returns, there)
    steps = torch.zeros_like(rewards).masked_scatter(there, episode * whole + step * own)
    return at_turn(steps, turn, mask)
