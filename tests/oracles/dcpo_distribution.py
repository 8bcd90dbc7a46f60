"""DCPO by distributions (arXiv:2601.12730), batch after batch. AEPO's temperature (2510.08141) is the same."""

from __future__ import annotations

import math
from typing import Any


def temperature(surprise: float | None, target: float = 0.5, hot: float = 1.2, cold: float = 0.8) -> float:
    return hot if surprise is None or surprise <= target else cold


def surprise(logp_old: Any, mask: Any) -> float | None:
    seen = [-float(x) for row, live in zip(logp_old, mask, strict=True) for x, m in zip(row, live, strict=True) if m]
    return math.fsum(seen) / len(seen) if seen else None


def dcpo(
    advantages: Any, correct: Any, tempered: Any, logp_old: Any, mask: Any, last: float | None,
    target: float = 0.5, cap: float = 0.1,
) -> list[list[float]]:  # fmt: skip
    p = sum(map(bool, correct)) / len(correct)
    alpha = 0.0
    if last is not None and p > 0:
        a = min(abs(target - last), cap) / p
        alpha = a / (1 + a)
    out = []
    for i in range(len(mask)):
        line = []
        for t in range(len(mask[i])):
            a = float(advantages[i][t]) if hasattr(advantages[i], "__len__") else float(advantages[i])
            rho = math.exp(max(-20.0, min(20.0, float(tempered[i][t]) - float(logp_old[i][t])))) if mask[i][t] else 0.0
            line.append((1 - alpha) * a + (alpha * rho if correct[i] else 0.0) if mask[i][t] else 0.0)
        out.append(line)
    return out
