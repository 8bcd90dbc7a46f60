"""BranchGRPO's depth pruning: a few late steps give no gradient, and move forward in training (arXiv:2509.06040)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2509.06040")
def prune_depths(
    mask: Tensor,
    weights: Tensor,
    step: int,
    *,
    first: int = 14,
    size: int = 4,
    every: int = 30,
    lowest: int = 9,
) -> Tensor:
    """Weight 0 for the decisions at `size` places from `first` on. [B] or [B,T] -> [B,T]

    Every `every` training steps they move one place towards the beginning, down to `lowest`, the last place at which
    paths fork: behind it decisions of a path have equal advantages.
    """
    start = max(first - step // every, min(lowest, first))
    place = torch.arange(mask.shape[1], device=mask.device)
    keep = mask & ~((place >= start) & (place < start + size))
    record("weights/pruned_from", float(start))
    return finite_or_zero(per_decision(weights, mask), keep)
