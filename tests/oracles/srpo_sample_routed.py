"""SRPO's routed loss (arXiv:2604.02288), by loops: [B,T] values and slopes by logp and by the KL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def sample_routed(n: dict[str, Any], beta: float, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value, by_logp, by_kl = (np.zeros(n["mask"].shape) for _ in range(3))
    rows, width = n["mask"].shape
    for g in set(map(int, n["groups"])):
        mine = [i for i in range(rows) if n["groups"][i] == g]
        routed = [
            (i, t) for i in mine for t in range(width)
            if n["mask"][i, t] and not n["correct"][i] and math.isfinite(n["kl_shown"][i, t])
        ]  # fmt: skip
        confidence = {(i, t): math.exp(-beta * float(n["entropy_shown"][i, t])) for i, t in routed}
        mean = math.fsum(confidence.values()) / len(routed) if routed else 1.0
        for i in mine:
            for t in range(width):
                if (i, t) in confidence:
                    by_kl[i, t] = confidence[i, t] / mean
                    value[i, t] = by_kl[i, t] * n["kl_shown"][i, t]
                elif n["mask"][i, t]:
                    a = float(n["advantages"][i])
                    gap = float(n["logp"][i, t] - n["logp_old"][i, t])
                    r = math.exp(min(max(gap, -20), 20))  # beyond that the ratio stands still
                    clipped = min(max(r, 1 - low), 1 + high)
                    value[i, t] = -min(r * a, clipped * a)
                    by_logp[i, t] = -r * a if r * a <= clipped * a and abs(gap) <= 20 else 0.0
    return value, by_logp, by_kl
