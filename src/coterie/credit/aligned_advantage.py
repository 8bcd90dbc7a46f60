"""Advantage Alignment: what is good for the other agent is worth what I have had so far (arXiv:2511.19405)."""

import torch
from torch import Tensor

from coterie.credit.leave_one_out import leave_one_out
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, returns_to_go, turn_exists


@credit(paper="arXiv:2511.19405", shape="B T", min_group=2)
def aligned_advantage(
    step_rewards: Tensor,
    other_rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    gamma: float = 0.96,
    beta: float = 2.0,
    now: bool = False,
) -> Tensor:
    """A_t + beta w_t B_t, with A_t and B_t the returns of this agent and of the others from turn t, each minus its mean
    over the same turn of the group's other rollouts, and w_t the discounted sum of A_k before t. [B,U] -> [B,T]

    Both returns are discounted by gamma. now: w_t holds A_t too; without it the sum is discounted once more, as in the
    authors' code. beta=0 is each agent for itself. A turn that no other rollout of the group reached, turns of equal
    returns and decisions in no turn get exactly 0.
    """
    there = turn_exists(turn, mask, step_rewards.shape[1])
    if not bool(there.any()):
        return torch.zeros_like(mask, dtype=step_rewards.dtype)
    number = torch.arange(there.shape[1], device=turn.device)
    place = (groups.unsqueeze(-1) * there.shape[1] + number)[there]

    def against_others(rewards: Tensor) -> Tensor:
        returns = returns_to_go(rewards, there, gamma)
        return torch.zeros_like(returns).masked_scatter(there, leave_one_out(returns[there], place))

    mine, theirs = against_others(step_rewards), against_others(other_rewards)
    so_far, past = torch.zeros_like(mine), mine.new_zeros(len(mine))
    for u in range(mine.shape[1]):  # turns of an episode, a handful
        with_now = gamma * past + mine[:, u]
        so_far[:, u] = with_now if now else gamma**2 * past
        past = with_now
    aligned = so_far * theirs
    record("align/own", mine.abs(), there)
    record("align/aligned", (beta * aligned).abs(), there)
    return at_turn(mine + beta * aligned, turn, mask)
