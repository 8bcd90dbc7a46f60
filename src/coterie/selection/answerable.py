"""UniRL's choice of what understanding learns from: answers about what was generated as asked (arXiv:2505.23380)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import filter


@filter(paper="arXiv:2505.23380")
def answerable(
    rewards: Tensor, components: Mapping[str, Tensor], *, side: str = "draws", fits: str = "picture", at: float = 1.0
) -> Tensor:
    """1 for all that was generated and for answers about what fits, 0 for other answers. [B] -> [B]

    The right answer is known from what was asked for, so that it is true of nothing else. Both settings name reward
    components: side is above 0 for rollouts that generate, fits says of an answer how far what it is about is what was
    asked for. Below `at`, or where it is not given (NaN), the answer leaves the batch and the statistics of its group.
    """
    makes = component(components, side, "answerable") > 0
    keeps = makes | (component(components, fits, "answerable") >= at)
    record("answerable/share", keeps.to(rewards.dtype), ~makes)
    return keeps.to(rewards.dtype)
