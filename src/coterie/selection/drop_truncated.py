"""Overlong filtering: rollouts cut by the budget get no gradient (DAPO, arXiv:2503.14476)."""

from torch import Tensor

from coterie.pieces import selection


@selection(paper="arXiv:2503.14476")
def drop_truncated(truncated: Tensor, weights: Tensor) -> Tensor:
    """Weight 0 for rollouts that ran out of budget, others keep theirs. [B] or [B,T] -> the same

    They leave numerator and denominator alike.
    """
    keep = (~truncated).to(weights.dtype)
    return weights * (keep if weights.dim() == 1 else keep.unsqueeze(-1))
