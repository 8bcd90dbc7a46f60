"""Rank-GRPO's advantage: each item of a list is worth what it can cause, measured by rank (arXiv:2510.20150)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, last_decision, turn_count


@credit(paper="arXiv:2510.20150", shape="B T", min_group=2)
def rank_norm(
    step_rewards: Tensor,
    turn: Tensor,
    mask: Tensor,
    truncated: Tensor,
    groups: Tensor,
    *,
    gain: Literal["suffix_dcg", "own"] = "suffix_dcg",
    items: int | None = None,
    count_bonus: float = 0.0,
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Tensor:
    """Reward of each item minus the group's mean at its rank, over the std there; for all decisions of it. [B,T]

    The steps of a rollout are the items of its list, step_rewards their relevance. gain: "suffix_dcg", the discounted
    relevance of an item and all after it, sum_{j>=k} h_j / log2(j+2) from j = 0, or each item's "own". A rank that a
    rollout does not have counts as 0 in its group. items: the length asked for; further items get 0, as do the last
    decision of a rollout that stopped by itself (the end of the list) and decisions in no step. count_bonus: with it
    further items get -count_bonus, and the end of the list count_bonus after exactly `items`, -count_bonus after fewer.
    scale: "none" does not divide. A rank of equal rewards gets exactly 0.
    """
    if count_bonus and items is None:
        raise RecipeError("rank_norm's count_bonus needs to know how many items there should be", hint="items=20")
    rank = torch.arange(step_rewards.shape[1], device=turn.device)
    count = turn_count(turn, mask).unsqueeze(-1)
    there = rank < (count if items is None else count.clamp_max(items))
    relevance = torch.where(there, step_rewards, step_rewards.new_zeros(()))
    record("rank/items", count.to(relevance.dtype).squeeze(-1))
    if gain == "suffix_dcg":
        relevance = (relevance / (rank + 2).to(relevance.dtype).log2()).flip(-1).cumsum(-1).flip(-1)
        record("rank/dcg", relevance[:, 0])
    place = groups.unsqueeze(-1) * len(rank) + rank
    centred = group_norm(relevance.flatten(), place.flatten(), scale=scale, ddof=ddof, eps=eps).view_as(relevance)
    end = last_decision(mask) & ~truncated.unsqueeze(-1)
    more = -count_bonus * (rank >= (len(rank) if items is None else items)).to(centred.dtype)
    out = at_turn(torch.where(there, centred, more), turn, mask & ~end)
    if items is None:
        return out
    at_end = count_bonus * ((count == items).to(out.dtype) - (count < items).to(out.dtype))
    return torch.where(end, at_end, out)
