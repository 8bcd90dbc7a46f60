"""TOPR (arXiv:2503.14286): REINFORCE with a truncated importance weight on bad rollouts alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def topr(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, level: str = "sequence"
) -> tuple[np.ndarray, np.ndarray]:
    """[B] losses and [B,T] derivatives."""
    value, gradient = np.zeros(mask.shape[0]), np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        taken = [t for t in range(mask.shape[1]) if mask[i, t]]
        whole = math.fsum(float(logp[i, t] - logp_old[i, t]) for t in taken)
        for t in taken:
            a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
            log_ratio = whole if level == "sequence" else float(logp[i, t] - logp_old[i, t])
            w = 1.0 if a >= 0 or log_ratio >= 0 else math.exp(log_ratio)
            value[i] -= w * a * float(logp[i, t])
            gradient[i, t] = -w * a
    return value, gradient
