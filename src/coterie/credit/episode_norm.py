"""An episode's reward against its group, for all its turns: AgentFlow's broadcast, GiGPO's macro advantage."""

from typing import Literal

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_sum, turn_count


@credit(paper="arXiv:2510.05592", min_group=2)
def episode_norm(
    rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    over: Literal["turns", "episodes"] = "turns",
    lone: Literal["reward", "zero"] = "reward",
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """Reward minus its group's mean, over the group's standard deviation + eps. [B] -> [B]

    over: "turns" takes mean and deviation over the turns of all episodes, each with its episode's reward, so that long
    episodes count more; "episodes" counts each once. An episode without turns counts once. lone: what the only entry
    of a group gets, its "reward" itself or "zero". scale: "none" does not divide. A group of equal rewards gets 0.
    """
    weight = turn_count(turn, mask).clamp_min(1).to(rewards.dtype) if over == "turns" else torch.ones_like(rewards)
    n = group_sum(weight, groups)
    centred = rewards - group_sum(weight * rewards, groups) / n
    centred = torch.where(group_is_constant(rewards, groups), torch.zeros_like(centred), centred)
    out = centred
    if scale == "std":
        variance = group_sum(weight * centred**2, groups) / (n - ddof).clamp_min(1.0)
        out = centred / (variance.sqrt() + eps)
    alone = (n == 1) & (group_count(groups, rewards.dtype) == 1)
    return torch.where(alone, rewards, out) if lone == "reward" else out
