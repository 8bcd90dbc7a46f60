"""Constant-length sum: no length bias at all (Dr. GRPO, arXiv:2503.20783)."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import aggregation


@aggregation(paper="arXiv:2503.20783")
def constant(weights: Tensor, mask: Tensor, budget: int, *, length: int | None = None) -> Tensor:
    """The coefficient of each decision: its weight over (rollouts * length). -> [B,T]

    length defaults to the run's completion budget: a constant, never the padded width. Rollouts without any weight do
    not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    live = (w != 0).any(-1).sum().to(w.dtype)
    return w / (live.clamp_min(1.0) * (budget if length is None else length))
