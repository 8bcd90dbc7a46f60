"""Unified-GRPO's stages: one side learns while the other is as it is, then the other (arXiv:2509.09666)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component, in_shape_of
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2509.09666")
def take_turns(
    weights: Tensor,
    components: Mapping[str, Tensor],
    step: int,
    *,
    side: str = "draws",
    every: int = 50,
    together: int = 0,
) -> Tensor:
    """Weights of the side whose turn it is, 0 for the other. [B] or [B,T] -> the same

    side: a reward component (with weight 0 it only annotates), above 0 for rollouts that generate; the others
    understand, and they begin. every: steps of a turn; 0 lets both learn always. together: steps at the beginning in
    which both learn. A policy of its own for each side stays exactly as it is while the other learns; where one policy
    is both, it is moved, by the other's rollouts alone.
    """
    makes = component(components, side, "take_turns") > 0
    if every <= 0 or step < together:
        learns = torch.ones_like(makes)
    else:
        learns = makes if (step - together) // every % 2 == 1 else ~makes
    record("turns/learning_share", learns.to(weights.dtype))
    return weights * in_shape_of(learns.to(weights.dtype), weights)
