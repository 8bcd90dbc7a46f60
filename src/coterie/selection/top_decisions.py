"""Only the decisions that matter most learn: forks (SPINE, arXiv:2511.17938), or |A| H (D3S, arXiv:2509.22115)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import group_count, group_position


@selection(paper="arXiv:2511.17938")
def top_decisions(
    entropy_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    share: float = 0.2,
    by: Literal["entropy", "signal"] = "entropy",
    scope: Literal["rollout", "batch"] = "rollout",
) -> Tensor:
    """Weight 0 for all but the `share` of decisions with the highest score. [B] or [B,T] -> [B,T]

    by: "entropy" is the entropy of a decision when it was taken, "signal" that times the size of its advantage. scope:
    the share of each "rollout", or of the whole "batch". It is rounded up, so something stays; among equals the earlier
    decision does. Decisions without weight do not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    live = w != 0
    score = entropy_old if by == "entropy" else entropy_old * per_decision(advantages, mask).abs()
    row = torch.arange(len(mask), device=mask.device) if scope == "rollout" else torch.zeros_like(mask[:, 0]).long()
    label = row.unsqueeze(-1).expand(mask.shape)[live]
    count = (group_count(label, torch.float64) * share - 1e-9).ceil()
    kept = torch.zeros_like(mask).masked_scatter(live, group_position(-score[live], label) < count)
    record("weights/top_share", kept.to(weights.dtype), live)
    record("weights/top_entropy", entropy_old, kept)
    return torch.where(kept, w, torch.zeros_like(w))
