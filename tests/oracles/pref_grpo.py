"""Pref-GRPO (arXiv:2508.20751): the share of the others that a rollout is preferred to, as a clipped z-score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Judge = Callable[[int, int], tuple[float, float]]
"""(shown first, shown second) -> their points"""


def win_rates(judge: Judge, n: int) -> list[float]:
    out = []
    for i in range(n):
        won = 0.0
        for j in range(n):
            if i != j:
                low, high = min(i, j), max(i, j)
                mine, other = judge(low, high) if i == low else judge(low, high)[::-1]
                won += 1.0 if mine > other else 0.5 if mine == other else 0.0
        out.append(won / (n - 1) if n > 1 else 0.0)
    return out


def advantages(rates: Sequence[float], bound: float = 5.0, eps: float = 1e-8) -> list[float]:
    n = len(rates)
    if max(rates) == min(rates):
        return [0.0] * n
    mean = math.fsum(rates) / n
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rates) / (n - 1))
    return [max(-bound, min(bound, (r - mean) / (std + eps))) for r in rates]
