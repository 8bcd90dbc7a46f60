"""GiGPO's advantage: an episode against its group, and an action against those in the same state (arXiv:2505.10978)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.credit.episode_norm import episode_norm
from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_count, returns_to_go, turn_exists


@credit(paper="arXiv:2505.10978", shape="B T", min_group=2)
def state_norm(
    rewards: Tensor,
    groups: Tensor,
    step_rewards: Tensor,
    state_key: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    over: Literal["turns", "episodes"] = "turns",
    lone: Literal["reward", "zero"] = "reward",
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """Normalised reward of the episode plus omega times the normalised return of the turn among all turns of its group
    that were taken in the same state. [B] -> [B,T]

    The return of a turn is the sum of its and later step_rewards, discounted by gamma. state_key [B,U] names states; a
    negative one is of no state. An episode that comes back to a state is compared with itself there. over and lone are
    those of episode_norm, which omega=0 is; scale, ddof and eps are of both parts. Turns alone in their state, and
    states of equal returns, get exactly 0 for the second part, and so do decisions in no turn.
    """
    out = finite_or_zero(
        per_decision(
            episode_norm(rewards, groups, turn, mask, over=over, lone=lone, scale=scale, ddof=ddof, eps=eps), mask
        ),
        mask,
    )
    there = turn_exists(turn, mask, step_rewards.shape[1])
    known = there & (state_key >= 0)
    if not bool(known.any()):
        return out
    owner = groups.unsqueeze(-1).expand_as(state_key)
    state = torch.unique(torch.stack([owner[known], state_key[known]], 1), dim=0, return_inverse=True)[1]
    gains = group_norm(returns_to_go(step_rewards, there, gamma)[known], state, scale=scale, ddof=ddof, eps=eps)
    record("state/shared_share", (group_count(state) > 1).to(out.dtype))
    record("state/turns_of_state", group_count(state))
    steps = torch.zeros_like(step_rewards).masked_scatter(known, gains)
    return out + omega * at_turn(steps, turn, mask).to(out.dtype)
