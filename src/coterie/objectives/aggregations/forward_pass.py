"""Mean over decoding steps of the mean over a step's decisions (CJ-GRPO, arXiv:2509.23924)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import aggregation


@aggregation(paper="arXiv:2509.23924")
def forward_pass(weights: Tensor, mask: Tensor, pass_index: Tensor) -> Tensor:
    """The coefficient of each decision: its weight over the decisions of its forward pass, over the passes. -> [B,T]

    Pass s of all rollouts of the update is one pool, so the one token of a first step weighs as much as the many of a
    last one. Passes without any decision left do not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    taken = w != 0
    own = torch.where(taken, pass_index, 0)
    pools = w.new_zeros(int(own.max()) + 1 if own.numel() else 1)
    count = pools.index_add(0, own.flatten(), taken.to(w.dtype).flatten())
    return w / count[own].clamp_min(1.0) / (count > 0).sum().clamp_min(1)
