"""GRPO-S (arXiv:2503.18991): hardness and responsiveness, group by group."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def factors(
    rewards: Sequence[float],
    groups: Sequence[int],
    hardness: Sequence[float],
    shown: Sequence[float],
    state: dict[str, float],
    cap: float = 1.0,
    decay: float = 0.9,
) -> list[float]:
    """`state` holds the running mean of the gap of earlier batches, and is brought up to date."""
    gaps, hard = [], []
    for i in range(len(rewards)):
        group = members(groups, i)
        gaps.append(max(0.0, math.fsum(shown[j] - rewards[j] for j in group) / len(group)))
        hard.append(math.fsum(1.0 if math.isnan(hardness[j]) else hardness[j] for j in group) / len(group))
    now = math.fsum(gaps) / len(gaps)
    running = state.get("gap", now)
    state["gap"] = decay * running + (1 - decay) * now
    return [h * (cap if g * cap <= running else running / g) for h, g in zip(hard, gaps, strict=True)]
