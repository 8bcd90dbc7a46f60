"""URPA's pseudo-label: an interval is rewarded for agreeing with the mean of its group's (arXiv:2508.06317)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_sum


@shaping(paper="arXiv:2508.06317")
def interval_consensus(
    rewards: Tensor,
    groups: Tensor,
    components: Mapping[str, Tensor],
    *,
    start: str = "start",
    end: str = "end",
    weight: float = 1.0,
) -> Tensor:
    """Rewards plus weight times the overlap (IoU) of a rollout's interval with the mean interval of its group. [B]

    start, end: the reward components that hold the interval an answer names. Where one is missing (NaN), or the end
    comes first, the answer names none: it adds nothing and is not in the mean. A group in which all agree has overlap
    1, one in which nobody names an interval 0.
    """
    first = component(components, start, "interval_consensus").to(rewards.dtype)
    last = component(components, end, "interval_consensus").to(rewards.dtype)
    named = last >= first  # false for NaN
    first, last = first.masked_fill(~named, 0.0), last.masked_fill(~named, 0.0)
    count = group_sum(named.to(rewards.dtype), groups).clamp_min(1.0)
    from_, to = group_sum(first, groups) / count, group_sum(last, groups) / count
    shared = (torch.minimum(last, to) - torch.maximum(first, from_)).clamp_min(0.0)
    union = torch.maximum(last, to) - torch.minimum(first, from_)
    overlap = torch.where(union > 0, shared / union.masked_fill(union <= 0, 1.0), torch.ones_like(union))
    overlap = overlap.masked_fill(~named, 0.0)
    record("interval/overlap", overlap, named)
    record("interval/named_share", named.to(rewards.dtype))
    return rewards + weight * overlap
