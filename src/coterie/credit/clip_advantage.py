"""Advantages kept within bounds, so that an outlier of a large group does not rule the update (arXiv:2508.20751)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit


@credit(paper="arXiv:2508.20751")
def clip_advantage(
    advantages: Tensor, mask: Tensor, *, bound: float = 5.0, beyond: Literal["bound", "zero"] = "bound"
) -> Tensor:
    """Advantages clamped to [-bound, bound]. [B] or [B,T] -> the same shape

    beyond="zero" takes outliers for noise and gives them no advantage at all: of whitened advantages a bound of 3
    leaves out what is more than three standard deviations away (arXiv:2505.02835).
    """
    outlier = advantages.abs() > bound
    record("credit/clipped_share", outlier.to(advantages.dtype), mask)
    if beyond == "zero":
        return torch.where(outlier, torch.zeros_like(advantages), advantages)
    return advantages.clamp(-bound, bound)
