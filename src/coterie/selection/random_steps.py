"""Train on a random part of each rollout's decisions, as DanceGRPO does with denoising steps (arXiv:2505.07818)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.streams import stream


@selection(paper="arXiv:2505.07818")
def random_steps(mask: Tensor, weights: Tensor, step: int, *, share: float = 0.6, seed: int = 0) -> Tensor:
    """Weight 0 for all but a share of each rollout's decisions that have weight, drawn anew at every step. [B] or [B,T]
    -> [B,T]

    share: of n decisions int(n * share) stay. seed: of the draw.
    """
    live = mask & (finite_or_zero(per_decision(weights, mask), mask) != 0)
    generator = torch.Generator().manual_seed(stream(seed, "random-steps", step))
    rows, width = mask.shape
    drawn = torch.rand(width, rows, generator=generator).T.to(mask.device)  # more columns do not change the first ones
    place = torch.where(live, drawn, 2.0).argsort(-1).argsort(-1)
    keep = live & (place < (live.sum(-1, keepdim=True) * share + 1e-9).floor())
    record("weights/kept_share", keep.to(weights.dtype), live)
    return finite_or_zero(per_decision(weights, mask), keep)
