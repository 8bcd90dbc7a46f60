"""UI-R1-E's reward with DAST (arXiv:2503.21620, arXiv:2503.04472): reward, and more or less of it by length."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dast(
    rewards: Sequence[float],
    lengths: Sequence[float],
    groups: Sequence[int],
    right: Sequence[bool],
    a: float = -0.5,
    b: float = 0.5,
    c: float = 0.9,
    d: float = 0.1,
) -> list[float]:
    out = []
    for i in range(len(rewards)):
        mine = [j for j in range(len(rewards)) if groups[j] == groups[i]]
        won = [lengths[j] for j in mine if right[j]]
        p = len(won) / len(mine)
        usual = math.fsum(won) / len(won) if won else 0.0
        budget = p * usual + (1 - p) * max(lengths[j] for j in mine)
        lam = (lengths[i] - budget) / budget if budget > 0 else 0.0
        out.append(rewards[i] + (max(a * lam + b, d) if right[i] else min(c * lam - d, -d)))
    return out
