"""KDRL (arXiv:2506.02208): half the squared difference to the teacher, on the rollouts that the mask leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def distillation(
    logp: Sequence[Sequence[float]],
    teacher: Sequence[Sequence[float]],
    groups: Sequence[int],
    correct: Sequence[bool],
    mask: Sequence[Sequence[bool]],
    coef: float = 2e-3,
    on: str = "all",
) -> tuple[list[list[float]], list[list[float]]]:
    """The value of each decision and its derivative by its own logp."""
    value, slope = [], []
    for i in range(len(logp)):
        if on == "wrong":
            taught = not correct[i]
        elif on == "failed_groups":
            taught = not any(correct[j] for j in members(groups, i))
        else:
            taught = True
        row, steep = [], []
        for x, y, live in zip(logp[i], teacher[i], mask[i], strict=True):
            acts = taught and bool(live) and not math.isnan(y)
            row.append(coef * 0.5 * (x - y) ** 2 if acts else 0.0)
            steep.append(coef * (x - y) if acts else 0.0)
        value.append(row)
        slope.append(steep)
    return value, slope
