"""The REC family (arXiv:2509.24203): REINFORCE with a range test, and perhaps the ratio as a constant weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import sequence_ratio, token_ratio


def in_range(r: float, a: float, clip: str, low: float, high: float, ring_low: float, ring_high: float) -> bool:
    band = 1 - low <= r <= 1 + high
    if clip == "one_side":
        return (a >= 0 and r <= 1 + high) or (a <= 0 and r >= 1 - low)
    if clip == "two_side":
        return band
    if clip == "ring":
        return band or (a >= 0 and r <= 1 - ring_low) or (a <= 0 and r >= 1 + ring_high)
    return True


def reinforce(
    logp: Any,
    logp_old: Any,
    advantages: Any,
    mask: Any,
    clip: str = "none",
    weight: str = "none",
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    ring_low: float = 0.6,
    ring_high: float = 2.0,
    level: str = "token",
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    tokens, _ = token_ratio(logp, logp_old, mask)
    rollouts, _ = sequence_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        r = float(tokens[i, t] if level == "token" else rollouts[i])
        if in_range(r, a, clip, eps_low, eps_high, ring_low, ring_high):
            w = {"none": 1.0, "ratio": r, "advantage": math.exp(a / temperature)}[weight]
            value[i, t], gradient[i, t] = -w * a * float(logp[i, t]), -w * a
    return value, gradient
