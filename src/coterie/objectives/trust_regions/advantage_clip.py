"""PPO's clip with bounds that are wider for what went well (Dynamic-TreeRPO, arXiv:2509.23352)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(paper="arXiv:2509.23352", zero_without_advantage=True)
def advantage_clip(
    ratio: Tensor, advantages: Tensor, *, eps_low: float = 1e-4, eps_high: float = 1e-3, sensitivity: float = 1.0
) -> Tensor:
    """min(r A, clip(r, 1 - eps, 1 + eps) A) with eps = eps_low + (eps_high - eps_low) sigmoid(sensitivity A), to be
    maximised. [B,T] or [B], as the ratio

    eps_low, eps_high: the bounds that eps comes near to for very bad and very good decisions; with sensitivity 0 it is
    the middle of both. The advantage is detached.
    """
    a = match(ratio, advantages).detach()
    eps = eps_low + (eps_high - eps_low) * torch.sigmoid(sensitivity * a)
    r = ratio.detach()
    record("clip/fraction", ((a > 0) & (r > 1 + eps)) | ((a < 0) & (r < 1 - eps)))
    record("clip/bound", eps)
    return torch.minimum(ratio * a, torch.minimum(torch.maximum(ratio, 1 - eps), 1 + eps) * a)
