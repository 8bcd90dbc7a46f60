"""Decisions that spell a pattern weigh more or nothing: numbers (CAD-RL, arXiv:2508.10118), a choice (AdaCoT)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import masked_sum


@selection(paper="arXiv:2508.10118")
def weigh_matched(
    matched: Tensor, mask: Tensor, weights: Tensor, *, pattern: str, factor: float = 2.0, keep_sum: bool = True
) -> Tensor:
    """Weights times `factor` at decisions whose text is in a match of the regular expression `pattern`. [B] or [B,T]
    -> [B,T]

    keep_sum: then scale each rollout so that its weights add up to what they did: a weighted mean over its decisions.
    With factor 0 matched decisions get no gradient. A rollout that had only such keeps none.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    hit = matched & mask
    out = w * torch.where(hit, factor, 1.0).to(w.dtype)
    record("weights/matched_share", hit.to(w.dtype), mask)
    if keep_sum:
        before, after = masked_sum(w, mask), masked_sum(out, mask)
        scale = torch.where(after != 0, before / torch.where(after != 0, after, 1.0), 0.0).to(w.dtype)
        out = out * scale.unsqueeze(-1)
    return out
