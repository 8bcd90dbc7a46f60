"""DCPO's bounds (arXiv:2509.02333), found by bisection on |r - 1| r p = eps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def _root(f: Any, a: float, b: float) -> float:
    """Where f, not above 0 at a and above 0 at b, changes its sign."""
    for _ in range(200):
        middle = (a + b) / 2
        a, b = (middle, b) if f(middle) <= 0 else (a, middle)
    return (a + b) / 2


def bounds(p: float, eps_low: float = 0.2, eps_high: float = 0.28, cap: float = 10.0) -> tuple[float, float]:
    """(1 - r) r p is largest at 1/2: if that stays below eps_low, the bound is there."""
    low = 0.5 if p / 4 <= eps_low else _root(lambda r: eps_low - (1 - r) * r * p, 0.5, 1.0)
    inside = (cap - 1) * cap * p <= eps_high
    high = cap if inside else _root(lambda r: (r - 1) * r * p - eps_high, 1.0, cap)
    return low, high


def dcpo(
    logp: Any,
    logp_old: Any,
    advantages: Any,
    mask: Any,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    cap: float = 10.0,
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses and derivatives."""
    ratio, slope = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a, r = float(advantages[i] if advantages.ndim == 1 else advantages[i, t]), float(ratio[i, t])
        low, high = bounds(math.exp(float(logp_old[i, t])), eps_low, eps_high, cap)
        top, bottom = (high, 0.0) if a > 0 else (cap, low)
        value[i, t] = -a * min(max(r, bottom), top)
        gradient[i, t] = -a * slope[i, t] if bottom <= r <= top else 0.0
    return value, gradient
