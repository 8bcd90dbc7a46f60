"""LUFFY's loss by loops, and its slope by each log-prob."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def luffy(
    n: dict[str, Any], gamma: float = 0.1, eps_low: float = 0.2, eps_high: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    ratio, by_logp = token_ratio(n["logp"], n["logp_old"], n["mask"])
    value, slope = np.zeros(n["mask"].shape), np.zeros(n["mask"].shape)
    for i in range(len(value)):
        for t in range(value.shape[1]):
            if not n["mask"][i, t]:
                continue
            a = n["advantages"][i] if n["advantages"].ndim == 1 else n["advantages"][i, t]
            if n["anchor"][i]:
                p = math.exp(n["logp"][i, t])
                value[i, t] = -a * p / (p + gamma)
                slope[i, t] = -a * p * gamma / (p + gamma) ** 2  # df/dp = gamma / (p + gamma)^2, dp/dlogp = p
                continue
            r = float(ratio[i, t])
            inside = min(max(r, 1 - eps_low), 1 + eps_high)
            value[i, t] = -min(r * a, inside * a)
            slope[i, t] = -a * float(by_logp[i, t]) if r * a <= inside * a else 0.0
    return value, slope
