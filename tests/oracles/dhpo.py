"""DHPO (arXiv:2601.05607): token and sequence ratios, clipped each for itself, then mixed."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.ratios import sequence_ratio, token_ratio


def _clip(x: float, slope: np.ndarray, low: float, high: float) -> tuple[float, np.ndarray]:
    return (x, slope) if 1 - low <= x <= 1 + high else (min(max(x, 1 - low), 1 + high), 0 * slope)


def dhpo(
    logp: Any,
    logp_old: Any,
    entropy: Any,
    advantages: Any,
    groups: Any,
    live: Any,
    share: float | None = None,
    token: tuple[float, float] = (0.2, 0.2),
    whole: tuple[float, float] = (3e-4, 4e-4),
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses of live decisions and [B,T,T] derivatives. share None is the entropy-guided mixture."""
    rows, width = live.shape
    r, r_slope = token_ratio(logp, logp_old, live)
    s, s_slope = sequence_ratio(logp, logp_old, live)
    value, jacobian = np.zeros((rows, width)), np.zeros((rows, width, width))
    for i, t in zip(*np.nonzero(live), strict=True):
        a = float(advantages[i] if advantages.ndim == 1 else advantages[i, t])
        most = max(
            max(float(entropy[j, u]), 0.0) for j, u in zip(*np.nonzero(live), strict=True) if groups[j] == groups[i]
        )
        w = share if share is not None else (max(float(entropy[i, t]), 0.0) / most if most > 0 else 0.0)
        own = np.zeros(width)
        own[t] = r_slope[i, t]
        near_r, near_own = _clip(float(r[i, t]), own, *token)
        near_s, near_all = _clip(float(s[i]), s_slope[i], *whole)
        free = w * float(r[i, t]) + (1 - w) * float(s[i]), w * own + (1 - w) * s_slope[i]
        near = w * near_r + (1 - w) * near_s, w * near_own + (1 - w) * near_all
        chosen = free if free[0] * a <= near[0] * a else near
        value[i, t], jacobian[i, t] = -chosen[0] * a, -chosen[1] * a
    return value, jacobian
