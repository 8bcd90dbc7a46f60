"""DCPO's smooth advantage standardisation (arXiv:2509.02333), from every reward a prompt ever had."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import std


def visit(history: list[list[float]], rewards: Sequence[float], ddof: int = 1) -> list[float]:
    """Advantages of this visit's rewards; earlier visits are in `history`, a list of rewards each."""
    visits = [*history, list(rewards)]
    i = len(visits)
    means = [math.fsum(v) / len(v) for v in visits]
    total = math.fsum(means) / i
    variance = math.fsum(std(v, ddof) ** 2 + (m - total) ** 2 for v, m in zip(visits, means, strict=True)) / i
    spread, own = math.sqrt(variance), std(list(rewards), ddof)
    out = []
    for r in rewards:
        now = (r - means[-1]) / own if own > 0 else 0.0
        ever = (r - total) / spread if spread > 0 else 0.0
        one, two = ever / i + (1 - 1 / i) * now, now / i + (1 - 1 / i) * ever
        out.append(one if abs(one) < abs(two) else two)
    return out
