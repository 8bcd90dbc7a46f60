"""The clipped loss of GRPO, DAPO and Dr. GRPO: ratio -> surrogate, a value and a derivative a decision."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.ppo_clip import ppo_clip
from oracles.ratios import token_ratio


def clipped_loss(logp: Any, logp_old: Any, advantages: Any, mask: Any, **bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] -min(r A, clip(r) A) and its derivative by logp; advantages [B] or [B,T]."""
    ratio, slope = token_ratio(logp, logp_old, mask)
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        surrogate, by_ratio = ppo_clip(float(ratio[i, t]), a, **bounds)
        value[i, t], gradient[i, t] = -surrogate, -by_ratio * slope[i, t]
    return value, gradient
