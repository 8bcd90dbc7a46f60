"""Graph-GRPO's advantage: an edge is worth what the graphs that have it are, on average (arXiv:2603.02701)."""

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_mean


@credit(paper="arXiv:2603.02701", shape="B T")
def edge_mean(advantages: Tensor, groups: Tensor, matched: Tensor, mask: Tensor, *, pattern: str = "1") -> Tensor:
    """The mean advantage of the group's rollouts that chose what `pattern` matches at this place; 0 for decisions that
    it does not match. [B] or [B,T] -> [B,T]

    pattern: a regular expression for the decisions that put an edge into the graph; the place of a decision says which
    edge. What only one rollout chose keeps its advantage, and what all chose is worth the mean of all, which after a
    baseline is 0 but for rounding.
    """
    chosen = matched & mask
    out = torch.zeros(mask.shape, dtype=advantages.dtype, device=mask.device)
    width = mask.shape[1]
    edge = groups.unsqueeze(-1) * width + torch.arange(width, device=mask.device)
    worth = group_mean(per_decision(advantages, mask)[chosen], edge[chosen])
    record("edge/chosen_share", chosen.to(out.dtype), mask)
    record("edge/abs_mean", worth.abs())
    return out.masked_scatter(chosen, worth)
