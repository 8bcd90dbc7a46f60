"""Probes measure and do not learn: rollouts forked from another get no gradient (SPO-chain, arXiv:2505.23564)."""

from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2505.23564")
def drop_forks(branch: Tensor, weights: Tensor) -> Tensor:
    """Weight 0 for rollouts that were forked from another, others keep theirs. [B] or [B,T] -> the same"""
    own = (branch < 0).to(weights.dtype)
    record("weights/fork_share", 1 - own)
    return weights * in_shape_of(own, weights)
