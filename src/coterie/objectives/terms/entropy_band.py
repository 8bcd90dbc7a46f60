"""SPINE's band: the entropy of decisions is held between quantiles of their rollout's (arXiv:2511.17938)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import term


@term(paper="arXiv:2511.17938")
def entropy_band(entropy: Tensor, mask: Tensor, *, coef: float = 0.01, low: float = 0.1, high: float = 0.5) -> Tensor:
    """coef * (max(0, H - top) + max(0, bottom - H)) of every decision, added to the loss. [B,T]

    bottom and top are the `low` and `high` quantiles (interpolated) of H over the rollout's decisions with weight,
    detached. Gradient flows through the policy's distribution. A rollout with one decision has no band.
    """
    h = finite_or_zero(entropy, mask)
    ordered = h.detach().masked_fill(~mask, torch.inf).sort(-1).values
    last = (mask.sum(-1, keepdim=True) - 1).clamp_min(0)

    def quantile(q: float) -> Tensor:
        place = q * last.to(h.dtype)
        below, above = (ordered.gather(-1, p.long()) for p in (place.floor(), place.ceil()))
        return torch.where(mask.any(-1, keepdim=True), below + (above - below) * (place - place.floor()), 0.0)

    outside = (h - quantile(high)).clamp_min(0.0) + (quantile(low) - h).clamp_min(0.0)
    record("band/outside_share", (outside.detach() > 0).to(h.dtype))
    return coef * finite_or_zero(outside, mask)
