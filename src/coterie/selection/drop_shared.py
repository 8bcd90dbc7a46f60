"""What two rollouts share is learned from once: decisions before a fork are the parent's (arXiv:2505.23564)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import selection


@selection(paper="arXiv:2505.23564")
def drop_shared(branch: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weight 0 for the decisions that a rollout took over from the one it was forked from. -> [B,T]

    Every edge of a tree then stands in the update once, in its first rollout. Without forks nothing changes.
    """
    own = torch.arange(mask.shape[1], device=mask.device) >= branch.unsqueeze(-1)
    return finite_or_zero(per_decision(weights, mask), mask & own)
