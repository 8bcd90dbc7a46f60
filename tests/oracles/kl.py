"""Schulman's estimators of KL(policy || reference) from one sample's log-ratio d = logp - logp_ref."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import limited_exp, token_ratio


def estimate(d: float, estimator: str) -> tuple[float, float]:
    """Value and derivative by d. k3's exponential is limited to exp(20), flat beyond."""
    if estimator == "k1":
        return d, 1.0
    if estimator == "k2":
        return d * d / 2, d
    inverse, slope = limited_exp(-d) if d < 0 else (math.exp(-d), math.exp(-d))
    return inverse - 1 + d, 1 - slope


def kl_term(
    logp: Any, logp_ref: Any, logp_old: Any, mask: Any, coef: float, estimator: str, importance: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    ratio, slope = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        k, dk = estimate(float(logp[i, t] - logp_ref[i, t]), estimator)
        if importance:
            k, dk = k * ratio[i, t], dk * ratio[i, t] + k * slope[i, t]
        value[i, t], gradient[i, t] = coef * k, coef * dk
    return value, gradient
