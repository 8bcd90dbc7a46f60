"""SPAM (arXiv:2501.06842), entry by entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def spam(
    weights: np.ndarray, gradients: Sequence[np.ndarray], lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-6, weight_decay: float = 0.0, threshold: float = 5000.0, reset_every: int = 500, warmup: int = 150,
    start: int = 20, masks: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:  # fmt: skip
    """Weights after each step, [d] each. `masks`: entries that have moments, before the first reset, after it, …"""
    w = np.array(weights, dtype=np.float64)
    m, v = np.zeros(len(w)), np.zeros(len(w))
    out, resets, since, warming = [], 0, 0, False
    for n, gradient in enumerate(gradients, start=1):
        since += 1
        if reset_every and n % reset_every == 0:
            m, v, resets, since, warming = np.zeros(len(w)), np.zeros(len(w)), resets + 1, 0, True
        scale = 1.0
        if warming and since < warmup:
            scale = 1 - 0.99 * (1 + math.cos(math.pi * since / (warmup + 1))) / 2
        for j in range(len(w)):
            if len(masks) and not masks[resets][j]:
                continue
            g = float(gradient[j])
            if threshold and since >= start and v[j] > 0 and g * g > threshold * v[j]:
                g = math.copysign(math.sqrt(threshold * v[j]), g)
            m[j] = beta1 * m[j] + (1 - beta1) * g
            v[j] = beta2 * v[j] + (1 - beta2) * g * g
            unbiased_m, unbiased_v = m[j] / (1 - beta1**n), v[j] / (1 - beta2**n)
            w[j] = w[j] * (1 - lr * weight_decay) - lr * scale * unbiased_m / (math.sqrt(unbiased_v) + eps)
        out.append(w.copy())
    return out
