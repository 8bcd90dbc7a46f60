"""Advantages kept within bounds, so that an outlier of a large group does not rule the update (arXiv:2508.20751)."""

from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit


@credit(paper="arXiv:2508.20751")
def clip_advantage(advantages: Tensor, mask: Tensor, *, bound: float = 5.0) -> Tensor:
    """Advantages clamped to [-bound, bound]. [B] or [B,T] -> the same shape"""
    record("credit/clipped_share", (advantages.abs() > bound).to(advantages.dtype), mask)
    return advantages.clamp(-bound, bound)
