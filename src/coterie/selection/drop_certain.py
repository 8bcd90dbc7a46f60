"""SPO's probability mask: credit goes to the decisions that could have been others (arXiv:2505.23564)."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2505.23564")
def drop_certain(logp_old: Tensor, mask: Tensor, weights: Tensor, *, threshold: float = 0.9) -> Tensor:
    """Weight 0 for decisions taken with a probability of `threshold` or more. [B] or [B,T] -> [B,T]

    They leave numerator and denominator alike. A threshold above 1 drops nothing.
    """
    open_ = logp_old.exp() < threshold
    record("weights/uncertain_share", open_.to(weights.dtype), mask)
    return finite_or_zero(per_decision(weights, mask), mask & open_)
