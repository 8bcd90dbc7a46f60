"""MA-RLHF: credit to macro actions, a few tokens taken together, in place of tokens (arXiv:2410.02743)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_is_constant, group_mean
from coterie.streams import stream

SIZES = (1, 2, 3, 5, 10)
"""Lengths that a random cut draws from."""


@credit(paper="arXiv:2410.02743", shape="B T")
def macro_gae(
    token_rewards: Tensor,
    mask: Tensor,
    groups: Tensor,
    logp_old: Tensor,
    step: int,
    *,
    cut: Literal["fixed", "random", "perplexity"] = "fixed",
    size: int = 5,
    gamma: float = 1.0,
    lam: float = 0.95,
    value: Literal["group", "zero"] = "group",
    seed: int = 0,
) -> Tensor:
    """Generalised advantage estimate over macro actions; every decision has its macro action's. [B,T] -> [B,T]

    A macro action is `size` decisions of a rollout in turn (cut="fixed"), or 1, 2, 3, 5 or 10 of them, drawn anew at
    every step by `seed` ("random"), or as many as become ever likelier: one begins where logp_old falls ("perplexity").
    The last decision is one of its own, so that the reward it carries is not averaged away. A macro action's reward is
    the mean of its decisions' rewards. gamma and lam discount by macro action. There is no critic: the value is the
    mean return of the "group" everywhere, or "zero". Of the rewards only token_rewards are read. With gamma and lam 1
    and the group's value, one reward at the end gives GRPO's advantage without std.
    """
    starts = _starts(mask, logp_old, step, cut, size, seed)
    macro = (starts.cumsum(-1) - 1).clamp_min(0) * mask
    end = starts.sum(-1, keepdim=True) - 1
    number = int(macro.max()) + 1
    total = token_rewards.new_zeros(len(mask), number)
    count = total.scatter_add(1, macro, mask.to(total.dtype))
    total = total.scatter_add(1, macro, torch.where(mask, token_rewards, torch.zeros_like(token_rewards)))
    reward = total / count.clamp_min(1.0)

    returns = reward.sum(-1)
    mean = torch.where(group_is_constant(returns, groups), returns, group_mean(returns, groups))
    state = (mean if value == "group" else torch.zeros_like(mean)).unsqueeze(-1)
    order = torch.arange(number, device=mask.device)
    delta = reward + torch.where(order < end, gamma * state, torch.zeros_like(state)) - state
    delta = torch.where(order <= end, delta, torch.zeros_like(delta))
    ahead = order.unsqueeze(0) - order.unsqueeze(1)  # from the macro action of the row to that of the column
    decay = torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp_min(0).to(delta.dtype), 0.0).to(delta.dtype)
    advantage = delta @ decay.T
    record("macro/actions", starts.sum(-1).to(delta.dtype), mask.any(-1))
    return torch.where(mask, advantage.gather(1, macro), torch.zeros_like(token_rewards))


def _starts(mask: Tensor, logp_old: Tensor, step: int, cut: str, size: int, seed: int) -> Tensor:
    """Decisions that begin a macro action: the first, those where the rule says so, and the last. [B,T] bool"""
    place, rows, width = (mask.cumsum(-1) - 1).clamp_min(0), *mask.shape
    first = torch.zeros_like(mask)  # by number of the decision
    if cut == "fixed":
        first[:, ::size] = True
    elif cut == "random":
        generator = torch.Generator().manual_seed(stream(seed, "macro-actions", step))
        drawn = torch.randint(len(SIZES), (width, rows), generator=generator).T.to(mask.device)
        lengths = torch.tensor(SIZES, device=mask.device)[drawn]
        begin = lengths.cumsum(-1) - lengths
        spare = torch.zeros_like(mask[:, :1])  # where those beyond the width go
        first = torch.cat([first, spare], 1).scatter(1, begin.clamp_max(width), True)[:, :width]
    else:
        logp = torch.zeros_like(logp_old)
        logp[mask.nonzero()[:, 0], place[mask]] = logp_old[mask]
        first[:, 1:] = logp[:, 1:] < logp[:, :-1]
        first[:, 0] = True
    last = place == mask.sum(-1, keepdim=True) - 1
    return mask & (first.gather(1, place) | last)
