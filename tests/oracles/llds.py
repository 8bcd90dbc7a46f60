"""LLDS (arXiv:2512.04220): run by run."""

from __future__ import annotations

from typing import Any

import numpy as np


def llds(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, coef: float = 0.2, gate: str = "action"
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] values and derivatives by logp; advantages [B] or [B,T]."""
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in range(len(mask)):
        a = advantages[i] if np.ndim(advantages) == 2 else [advantages[i]] * mask.shape[1]
        good = [t for t in range(mask.shape[1]) if mask[i][t] and a[t] >= 0]
        actions: list[list[int]] = []
        for t in good:
            if gate == "decision" or not actions or (gate == "action" and actions[-1][-1] != t - 1):
                actions.append([])
            actions[-1].append(t)
        for action in actions:
            lost = [float(logp_old[i][t]) - float(logp[i][t]) for t in action]
            if sum(lost) > 0:
                for t, x in zip(action, lost, strict=True):
                    if x > 0:
                        value[i, t], gradient[i, t] = coef * x, -coef
    return value, gradient
