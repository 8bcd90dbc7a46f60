"""Decisions without an advantage leave the mean: SPO-tree discards the edges that taught nothing (arXiv:2505.23564)."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2505.23564")
def drop_idle(advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weight 0 for decisions whose advantage is exactly 0, others keep theirs. [B] or [B,T] -> [B,T]

    Without it they have no gradient either, but count in the denominator of a mean.
    """
    live = per_decision(advantages, mask) != 0
    record("weights/idle_share", (~live).to(weights.dtype), mask)
    return finite_or_zero(per_decision(weights, mask), mask & live)
