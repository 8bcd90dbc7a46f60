"""THR (arXiv:2510.03669): every pair of tokens of a group."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members


def influences(probs: Any, hidden: Any, tokens: Any, groups: Any, correct: Any, mask: Any) -> list[list[float]]:
    """probs[i][t] and hidden[i][t] are vectors. Mean over correct rollouts of the sum over their tokens."""

    def error(i: int, t: int) -> list[float]:
        return [(1.0 if v == int(tokens[i][t]) else 0.0) - float(p) for v, p in enumerate(probs[i][t])]

    def dot(x: Any, y: Any) -> float:
        return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))

    out = []
    for i in range(len(groups)):
        right = [j for j in members(groups, i) if correct[j]]
        line = []
        for t in range(len(mask[i])):
            total = 0.0
            for j in right:
                for u in range(len(mask[j])):
                    if mask[i][t] and mask[j][u]:
                        total += dot(error(i, t), error(j, u)) * dot(hidden[i][t], hidden[j][u]) / len(right)
            line.append(total)
        out.append(line)
    return out


def thr(
    advantages: Any,
    influence: Any,
    correct: Any,
    groups: Any,
    mask: Any,
    p: float = 0.1,
    beta: float = 1.0,
    small: str = "drop",
) -> list[list[float]]:
    out = []
    for i in range(len(groups)):
        means = []
        for j in members(groups, i):
            own = [float(x) for x, m in zip(influence[j], mask[j], strict=True) if m]
            if correct[j] and own:
                means.append(math.fsum(own) / len(own))
        line = []
        for t in range(len(mask[i])):
            a = float(advantages[i][t]) if hasattr(advantages[i], "__len__") else float(advantages[i])
            if not mask[i][t]:
                line.append(0.0)
            elif not means:
                line.append(a)
            elif abs(float(influence[i][t])) <= beta * max(0.0, min(means)):
                line.append(a if small == "keep" else 0.0)
            else:
                x = a * float(influence[i][t])
                line.append(a * (1 + p * ((x > 0) - (x < 0))))
        out.append(line)
    return out
