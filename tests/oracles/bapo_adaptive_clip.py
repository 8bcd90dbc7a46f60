"""BAPO (arXiv:2510.18927): bounds of the clip that open until good and bad decisions of a prompt balance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def bounds(
    pairs: list[tuple[float, float]], target: float, low: tuple[float, float, float], high: tuple[float, float, float]
) -> tuple[float, float]:
    """From (ratio, advantage) of decisions; low and high are start, end and step."""

    def balanced(lo: float, hi: float) -> bool:
        good = math.fsum(a * min(r, hi) for r, a in pairs if a > 0)
        bad = math.fsum(-a * max(r, lo) for r, a in pairs if a < 0)
        return bad == 0 or good / (bad + 1e-8) >= target

    lo, hi = low[0], high[0]
    while not balanced(lo, hi) and lo < low[1] - 1e-9:
        lo = min(lo + low[2], low[1])
    while not balanced(lo, hi) and hi < high[1] - 1e-9:
        hi = min(hi + high[2], high[1])
    return lo, hi


def bapo(
    logp: Any,
    logp_old: Any,
    advantages: Any,
    mask: Any,
    groups: Any,
    target: float = 1.0,
    low: tuple[float, float, float] = (0.6, 0.8, 0.05),
    high: tuple[float, float, float] = (1.2, 2.0, 0.05),
    dual: float | None = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses and derivatives."""
    ratio, slope = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)

    def advantage(i: int, t: int) -> float:
        return float(advantages[i] if advantages.ndim == 1 else advantages[i, t])

    for g in set(int(x) for x in groups):
        places = [(i, t) for i, t in zip(*np.nonzero(mask), strict=True) if groups[i] == g]
        lo, hi = bounds([(float(ratio[i, t]), advantage(i, t)) for i, t in places], target, low, high)
        for i, t in places:
            r, a = float(ratio[i, t]), advantage(i, t)
            loss = max(-a * r, -a * min(max(r, lo), hi))
            moves = -a * r == loss
            if dual is not None and a < 0 and loss > -a * dual:
                loss, moves = -a * dual, False
            value[i, t], gradient[i, t] = loss, -a * slope[i, t] if moves else 0.0
    return value, gradient
