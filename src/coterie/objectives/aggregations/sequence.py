"""Sequence mean: every rollout counts the same, whatever its length (DeepSeekMath, arXiv:2402.03300)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import aggregation
from coterie.reductions import group_sum


@aggregation(paper="arXiv:2402.03300")
def sequence(weights: Tensor, mask: Tensor, groups: Tensor, *, scope: Literal["batch", "group"] = "batch") -> Tensor:
    """The coefficient of each decision: its weight over its rollout's decisions, over the rollouts. -> [B,T]

    scope="group": rollouts are averaged within each group, then groups. Rollouts without any weight do not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    active = (w != 0).sum(-1).to(w.dtype)
    live = (active > 0).to(w.dtype)
    mean = w / active.clamp_min(1.0).unsqueeze(-1)
    if scope == "batch":
        return mean / live.sum().clamp_min(1.0)
    live_groups = len(groups[active > 0].unique())
    return mean / group_sum(live, groups).clamp_min(1.0).unsqueeze(-1) / max(live_groups, 1)
