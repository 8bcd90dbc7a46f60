"""The last decisions of a rollout teach nothing: diffusion methods leave the last denoising step out of training."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import selection


@selection(paper="arXiv:2505.05470")
def drop_last(mask: Tensor, weights: Tensor, *, count: int = 1) -> Tensor:
    """Weight 0 for the last `count` decisions of each rollout, others keep theirs. [B] or [B,T] -> [B,T]"""
    left = mask.flip(-1).cumsum(-1).flip(-1)
    return finite_or_zero(per_decision(weights, mask), mask & (left > count))
