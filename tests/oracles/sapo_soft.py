"""SAPO (arXiv:2511.20347): a sigmoid gate on each ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def sapo(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, tau_pos: float = 1.0, tau_neg: float = 1.05
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses and derivatives."""
    ratio, slope = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        tau = tau_pos if a > 0 else tau_neg
        x = tau * (float(ratio[i, t]) - 1)
        p, q = (1 / (1 + math.exp(-x)), math.exp(-x) / (1 + math.exp(-x))) if x > -30 else (math.exp(x), 1.0)
        value[i, t] = -4 / tau * p * a
        gradient[i, t] = -4 * p * q * a * slope[i, t]
    return value, gradient
