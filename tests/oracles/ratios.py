"""Importance ratios with their derivative by each log-prob. Log-ratios are limited to +-20, flat beyond."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LIMIT = 20.0


def limited_exp(d: float) -> tuple[float, float]:
    """exp of the limited argument, and its derivative by the argument."""
    value = math.exp(max(-LIMIT, min(LIMIT, d)))
    return value, value if abs(d) <= LIMIT else 0.0


def token_ratio(logp: Any, logp_old: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] ratios (1 where masked) and d ratio / d logp (0 where masked)."""
    value, slope = np.ones(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        value[i, t], slope[i, t] = limited_exp(float(logp[i, t] - logp_old[i, t]))
    return value, slope


def sequence_ratio(logp: Any, logp_old: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """GSPO (arXiv:2507.18071): [B] ratios and [B,T] derivatives s_i / L_i."""
    value, slope = np.ones(mask.shape[0]), np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        decisions = [t for t in range(mask.shape[1]) if mask[i, t]]
        if not decisions:
            continue
        mean = math.fsum(float(logp[i, t] - logp_old[i, t]) for t in decisions) / len(decisions)
        value[i], per_log = limited_exp(mean)
        for t in decisions:
            slope[i, t] = per_log / len(decisions)
    return value, slope


def sequence_token_ratio(logp: Any, logp_old: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """GSPO-token: the value of s_i at every decision, whose derivative by its own log-prob is s_i too."""
    s, _ = sequence_ratio(logp, logp_old, mask)
    value = np.repeat(s[:, None], mask.shape[1], axis=1)
    return value, value * mask
