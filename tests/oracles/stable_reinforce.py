"""StableReinforce (arXiv:2505.02835): the outlier filter on whitened returns, and the clip before the exponential."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ppo_clip import ppo_clip


def advantages(returns: Any, mask: Any, bound: float = 3.0, eps: float = 1e-8) -> np.ndarray:
    """[B,T], 0 where masked. Standard deviation without correction."""
    places = list(zip(*np.nonzero(mask), strict=True))
    values = [float(returns[p]) for p in places]
    out = np.zeros(mask.shape)
    if not values or max(values) == min(values):
        return out
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values) + eps)
    for p, v in zip(places, values, strict=True):
        z = (v - mean) / std
        out[p] = 0.0 if abs(z) > bound else z
    return out


def loss(logp: Any, logp_old: Any, a: Any, mask: Any, limit: float = math.log(1000)) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses and derivatives."""
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        d = float(logp[i, t] - logp_old[i, t])
        r = math.exp(min(max(d, -limit), limit))
        surrogate, by_ratio = ppo_clip(r, float(a[i, t]))
        value[i, t] = -surrogate
        gradient[i, t] = -by_ratio * r if abs(d) <= limit else 0.0
    return value, gradient
