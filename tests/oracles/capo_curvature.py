"""CAPO (arXiv:2510.00819): the step of one token at the output layer W [V,D], written out matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence


def score(pi: Sequence[float], taken: int) -> list[float]:
    return [(1.0 if j == taken else 0.0) - p for j, p in enumerate(pi)]


def changes(pi: Sequence[float], taken: int, h: Sequence[float], advantage: float, lr: float) -> tuple[float, float]:
    """(m_H, m_F) of one token."""
    v = score(pi, taken)
    step = [[advantage * vj * hd for hd in h] for vj in v]
    u = [math.fsum(g * hd for g, hd in zip(row, h, strict=True)) for row in step]
    along = math.fsum(a * b for a, b in zip(v, u, strict=True))
    mean = math.fsum(p * x for p, x in zip(pi, u, strict=True))
    spread = math.fsum(p * x * x for p, x in zip(pi, u, strict=True)) - mean**2
    norm = math.fsum(g * g for row in step for g in row)
    return lr * norm + lr**2 / 2 * advantage * (along**2 - spread), lr**2 / 2 * along**2


def columns(pi: Sequence[float], taken: int, h: Sequence[float]) -> tuple[float, float, float]:
    """|h|^2, |v|^2, and the variance of v under pi."""
    v = score(pi, taken)
    mean = math.fsum(p * x for p, x in zip(pi, v, strict=True))
    variance = math.fsum(p * (x - mean) ** 2 for p, x in zip(pi, v, strict=True))
    return math.fsum(x * x for x in h), math.fsum(x * x for x in v), variance
