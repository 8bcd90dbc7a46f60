"""EAPO's advantage: the reward, less with every turn that was still to come, against the group (arXiv:2511.07327)."""

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, turn_count


@credit(paper="arXiv:2511.07327", shape="B T", min_group=2)
def decayed_turn_norm(
    rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    turns_after: Tensor | None = None,
    *,
    gamma: float = 0.995,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """gamma^(turns after this one) R, normalised over all turns of the group. [B] -> [B,T]

    Among episodes of one reward above 0 the shorter ones, and in each the later turns, are worth more. Long episodes
    count more in mean and deviation. Where all are equal, as where all rewards are 0 or gamma is 1 and rewards are
    equal, it is exactly 0; decisions in no turn get 0. turns_after says how many turns of its episode lie behind a row,
    where an episode has several.
    """
    count = turn_count(turn, mask).unsqueeze(-1)
    number = torch.arange(max(int(count.max()), 1), device=turn.device)
    there = number < count
    ahead = (count - 1 - number).clamp_min(0)
    if turns_after is not None:
        ahead = ahead + turns_after.unsqueeze(-1)
    decay = rewards.new_tensor(gamma) ** ahead.to(rewards.dtype)
    value = decay * rewards.unsqueeze(-1)
    if not bool(there.any()):
        return torch.zeros_like(mask, dtype=rewards.dtype)
    record("eapo/decay", decay, there)
    owner = groups.unsqueeze(-1).expand_as(there)[there]
    normal = group_norm(value[there], owner, ddof=ddof, eps=eps)
    return at_turn(torch.zeros_like(value).masked_scatter(there, normal), turn, mask)
