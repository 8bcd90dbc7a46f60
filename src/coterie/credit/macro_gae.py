"""MA-RLHF: credit to macro actions, a few tokens taken together, in place of tokens (arXiv:2410.02743)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_is_constant, group_mean


@credit(paper="arXiv:2410.02743", shape="B T")
def macro_gae(
    token_rewards: Tensor,
    mask: Tensor,
    groups: Tensor,
    *,
    size: int = 5,
    gamma: float = 1.0,
    lam: float = 0.95,
    value: Literal["group", "zero"] = "group",
) -> Tensor:
    """Generalised advantage estimate over macro actions; every decision has its macro action's. [B,T] -> [B,T]

    A macro action is `size` decisions of a rollout in turn; the last decision is one of its own, so that the reward it
    carries is not averaged away. Its reward is the mean of its decisions' rewards. gamma and lam discount by macro
    action. There is no critic: the value is the mean return of the "group" everywhere, or "zero". Only token_rewards
    are read. With gamma and lam 1 and the group's value, one reward at the end gives GRPO's advantage without std.
    """
    place, length = mask.cumsum(-1) - 1, mask.sum(-1, keepdim=True)
    end = torch.where(length > 1, (length - 2).div(size, rounding_mode="floor") + 1, torch.zeros_like(length))
    macro = torch.where(place == length - 1, end, place.clamp_min(0).div(size, rounding_mode="floor"))
    macro = torch.where(mask, macro, torch.zeros_like(macro))
    number = int(macro.max()) + 1
    total = token_rewards.new_zeros(len(mask), number)
    count = total.scatter_add(1, macro, mask.to(total.dtype))
    total = total.scatter_add(1, macro, torch.where(mask, token_rewards, torch.zeros_like(token_rewards)))
    reward = total / count.clamp_min(1.0)

    returns = reward.sum(-1)
    mean = torch.where(group_is_constant(returns, groups), returns, group_mean(returns, groups))
    state = (mean if value == "group" else torch.zeros_like(mean)).unsqueeze(-1)
    step = torch.arange(number, device=mask.device)
    delta = reward + torch.where(step < end, gamma * state, torch.zeros_like(state)) - state
    delta = torch.where(step <= end, delta, torch.zeros_like(delta))
    ahead = step.unsqueeze(0) - step.unsqueeze(1)  # from the macro action of the row to that of the column
    decay = torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp_min(0).to(delta.dtype), 0.0).to(delta.dtype)
    advantage = delta @ decay.T
    record("macro/actions", (end.squeeze(-1) + 1).to(delta.dtype), mask.any(-1))
    return torch.where(mask, advantage.gather(1, macro), torch.zeros_like(token_rewards))
