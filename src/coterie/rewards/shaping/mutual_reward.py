"""UniRL's reward of what was generated: it is worth the more, the better it was understood (arXiv:2505.23380)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2505.23380")
def mutual_reward(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    *,
    side: str = "draws",
    understood: str = "answer",
    fits: str | None = "picture",
    at: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """Rewards of what was generated plus weight * how well it was understood; those of understanding stay. [B] -> [B]

    All three name reward components (with weight 0 they only annotate). side: above 0 for rollouts that generate.
    understood: for these the share of answers about them that were right. fits: how far they are what was asked for;
    where that is below `at`, or not given (NaN), answers about them say nothing and nothing is added. fits=null adds
    everywhere. An `understood` that is not given adds nothing. Detached, as rewards are.
    """
    makes = component(components, side, "mutual_reward") > 0
    share = component(components, understood, "mutual_reward").to(rewards.dtype)
    known = makes & ~share.isnan()
    if fits is not None:
        fit = component(components, fits, "mutual_reward") >= at
        record("mutual/fit_share", fit.to(rewards.dtype), makes)
        known &= fit
    record("mutual/understood", share, known)
    return rewards + torch.where(known, weight * share, torch.zeros_like(rewards))
