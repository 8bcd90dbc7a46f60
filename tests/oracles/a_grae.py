"""A-GRAE (arXiv:2602.05548): difficulty weights that move with the batch, and damped praise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def a_grae(
    advantages: Sequence[float],
    rewards: Sequence[float],
    groups: Sequence[int],
    alpha: float = 1.0,
    eps: float = 1e-6,
    bounded: bool = True,
) -> list[float]:
    """`bounded` keeps each group's rate in [1/n, 1-1/n] inside the weight; without it, the formula as released."""
    rates = {}
    for g in sorted(set(int(g) for g in groups)):
        inside = [min(max(float(rewards[i]), 0.0), 1.0) for i in range(len(groups)) if groups[i] == g]
        rates[g] = math.fsum(inside) / len(inside)
    overall = math.fsum(rates.values()) / len(rates)
    out = []
    for i in range(len(advantages)):
        rate, n = rates[int(groups[i])], len(members(groups, i))
        if bounded:
            rate = min(max(rate, 1 / n), 1 - 1 / n)
        for_easy = float(advantages[i]) / (1 - math.sqrt(rate) + eps)
        for_hard = float(advantages[i]) / (math.sqrt(rate) + eps)
        a = 0.5 * (1 - overall) * for_easy + 0.5 * overall * for_hard
        out.append(a * min(1.0, overall / alpha) if a > 0 else a)
    return out
