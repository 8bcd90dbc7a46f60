"""Reg-GRPO (arXiv:2506.07464): regression of standardised log-ratios on advantages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def reg_grpo(
    logp: Any, logp_old: Any, advantages: Any, groups: Any, live: Any, scale: str = "std", eps: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """[B] losses (0 for rollouts without a live decision) and [B,B] derivatives of loss i by rho j."""
    size = len(groups)
    rho = [math.fsum(float(x) for x in (logp[i] - logp_old[i])[live[i]]) for i in range(size)]
    value, by_rho = np.zeros(size), np.zeros((size, size))
    for i in range(size):
        rows = [j for j in range(size) if groups[j] == groups[i] and live[j].any()]
        if i not in rows:
            continue
        mean = math.fsum(rho[j] for j in rows) / len(rows)
        std = math.sqrt(math.fsum((rho[j] - mean) ** 2 for j in rows) / max(len(rows) - 1, 1))
        below = std + eps if scale == "std" else 1.0
        error = float(advantages[i]) - (rho[i] - mean) / below
        value[i] = error**2
        for j in rows:
            by = ((i == j) - 1 / len(rows)) / below
            if scale == "std" and std > 0:
                by -= (rho[i] - mean) / below**2 * (rho[j] - mean) / (std * max(len(rows) - 1, 1))
            by_rho[i, j] = -2 * error * by
    return value, by_rho
