"""MSSR (arXiv:2512.18215): the bounded entropy bonus, decision by decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def entropy_advantage(
    advantages: Any, entropy: Sequence[Sequence[float]], mask: Any, coef: float = 0.4, kappa: float = 2.0
) -> list[list[float]]:
    """0 where nothing was decided; advantages one a rollout, or one a decision."""
    out = []
    for i, row in enumerate(entropy):
        line = []
        for t, h in enumerate(row):
            a = float(advantages[i][t] if hasattr(advantages[i], "__len__") else advantages[i])
            line.append(a + min(coef * h, abs(a) / kappa) if mask[i][t] else 0.0)
        out.append(line)
    return out
