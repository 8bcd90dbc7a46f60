"""Supervised learning on demonstrations inside the loop, with a weight a token (CHORD, arXiv:2508.11408)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import imitation


@imitation(paper="arXiv:2508.11408")
def likelihood(
    logp: Tensor,
    mask: Tensor,
    *,
    mu: float = 0.1,
    weight: Literal["none", "uncertainty", "probability"] = "none",
) -> Tensor:
    """-w logp of the tokens of demonstrations, to be minimised. [B,T]. Gradient through logp, w is detached.

    mu: the share of this in the whole loss, which the update applies: (1 - mu) of the rest and mu of the mean over the
    demonstrations' tokens. weight: "none" is plain supervised learning; "uncertainty" is CHORD's phi, p (1 - p), which
    passes over tokens that the policy knows and tokens that are far from it; "probability" is p.
    """
    p = finite_or_zero(logp.detach(), mask).exp()
    w = {"none": torch.ones_like(p), "uncertainty": p * (1 - p), "probability": p}[weight]
    nll = -finite_or_zero(logp, mask)
    record("imitation/nll", nll)
    record("imitation/weight", w)
    return w * nll
