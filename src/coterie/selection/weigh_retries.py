"""THOR's two levels: how much tool calls that were made anew weigh beside whole episodes (arXiv:2509.13761)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2509.13761")
def weigh_retries(ran: Tensor, weights: Tensor, *, weight: float = 1.0) -> Tensor:
    """Weights of calls that were made anew times `weight`, others keep theirs. [B] or [B,T] -> the same

    1 counts a decision of either level alike; 0 learns from whole episodes alone.
    """
    factor = torch.where(ran >= 0, weight, 1.0).to(weights.dtype)
    record("weights/retried", factor)
    return weights * in_shape_of(factor, weights)
