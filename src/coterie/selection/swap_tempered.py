"""AEPO's batch: good rollouts at another temperature take the place of as many others (arXiv:2510.08141)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2510.08141")
def swap_tempered(advantages: Tensor, heat: Tensor, mask: Tensor, weights: Tensor, *, share: float = 0.0234) -> Tensor:
    """Weight 0 for all rollouts drawn at another temperature but the first n with an advantage, and for the first n of
    the run's own; others keep theirs. [B] or [B,T] -> the same

    n is at most `share` of the run's own rollouts (heat 1), rounded down, and half of what it would be, rounded down,
    where the other temperature is the lower one. The batch stays as large as without them. share=0 leaves them out.
    """
    tempered = heat != 1
    good = tempered & (per_decision(advantages, mask).gt(0) & mask).any(-1)
    n = torch.minimum(good.sum(), ((~tempered).sum() * share + 1e-9).floor().long())
    n = torch.where((heat < 1).any(), n // 2, n)
    taken = good & (good.cumsum(0) <= n)
    gone = ~tempered & ((~tempered).cumsum(0) <= n)
    keep = torch.where(tempered, taken, ~gone)
    record("aepo/swapped_share", taken.to(weights.dtype))
    return weights * in_shape_of(keep.to(weights.dtype), weights)
