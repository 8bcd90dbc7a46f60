"""GSPO and GSPO-token (arXiv:2507.18071)."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.ppo_clip import ppo_clip
from oracles.ratios import sequence_ratio, sequence_token_ratio


def gspo(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, eps_low: float = 3e-4, eps_high: float = 4e-4
) -> tuple[np.ndarray, np.ndarray]:
    """[B] -min(s A, clip(s) A) and its [B,T] derivatives."""
    s, slope = sequence_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(len(s)), np.zeros(mask.shape)
    for i in range(len(s)):
        surrogate, by_ratio = ppo_clip(float(s[i]), float(advantages[i]), eps_low, eps_high)
        value[i] = -surrogate
        for t in range(mask.shape[1]):
            gradient[i, t] = -by_ratio * slope[i, t]
    return value, gradient


def gspo_token(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, eps_low: float = 3e-4, eps_high: float = 4e-4
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] the same with an advantage a decision."""
    s, slope = sequence_token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        surrogate, by_ratio = ppo_clip(float(s[i, t]), a, eps_low, eps_high)
        value[i, t], gradient[i, t] = -surrogate, -by_ratio * slope[i, t]
    return value, gradient
