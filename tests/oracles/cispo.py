"""CISPO (arXiv:2506.13585): the clipped ratio is a constant weight on log-likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def cispo(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, max_ratio: float = 5.0, min_ratio: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    ratio, _ = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        w = min(max(float(ratio[i, t]), min_ratio), max_ratio)
        value[i, t], gradient[i, t] = -w * a * float(logp[i, t]), -w * a
    return value, gradient
