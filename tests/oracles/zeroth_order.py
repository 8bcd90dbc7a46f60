"""Zeroth-order steps: MeZO (arXiv:2305.17333), its benchmark's family (2402.11592), Sparse MeZO (2402.15751)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Tensors = list[np.ndarray]


def zeroth_order(
    weights: Sequence[np.ndarray], loss: Callable[[Tensors], float],
    direction: Callable[[int, int, int, list[int]], Tensors], steps: int, lr: float = 1e-3, eps: float = 1e-3,
    rule: str = "sgd", momentum: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, sides: int = 2,
    samples: int = 1, blocks: int = 1, conservative: bool = False, weight_decay: float = 0.0,
    thresholds: Sequence[float] | None = None,
) -> list[Tensors]:  # fmt: skip
    """Weights after each step. `direction(step, block, sample, members)` are the z of a block's tensors; weights whose
    size is above their tensor's threshold rest.
    """
    w = [np.array(x, dtype=np.float64) for x in weights]
    buffer = [np.zeros_like(x) for x in w]
    m, v = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w]
    out = []
    for step in range(steps):
        estimate = [np.zeros_like(x) for x in w]
        for block, members in enumerate(np.array_split(np.arange(len(w)), blocks)):
            for sample in range(samples):
                z = [np.zeros_like(x) for x in w]
                for i, drawn in zip(members, direction(step, block, sample, list(members)), strict=True):
                    still = np.abs(w[i]) > thresholds[i] if thresholds is not None else np.zeros(w[i].shape, bool)
                    z[i] = np.where(still, 0.0, drawn)
                ahead = loss([x + eps * d for x, d in zip(w, z, strict=True)])
                back = loss([x - eps * d for x, d in zip(w, z, strict=True)]) if sides == 2 else loss(w)
                slope = (ahead - back) / (sides * eps)
                if rule == "sign":
                    slope = float((slope > 0) - (slope < 0))
                for i in members:
                    estimate[i] += slope * z[i] / samples
        w = [x * (1 - lr * weight_decay) for x in w]
        move = [np.zeros_like(x) for x in w]
        for i in range(len(w)):
            for j in np.ndindex(w[i].shape):
                g = estimate[i][j]
                if rule == "adam":
                    m[i][j] = beta1 * m[i][j] + (1 - beta1) * g
                    v[i][j] = beta2 * v[i][j] + (1 - beta2) * g * g
                    root = math.sqrt(v[i][j] / (1 - beta2 ** (step + 1))) + 1e-8
                    g = m[i][j] / (1 - beta1 ** (step + 1)) / root
                elif momentum:
                    g = buffer[i][j] = momentum * buffer[i][j] + g
                move[i][j] = lr * g
        places = [w, [x - d for x, d in zip(w, move, strict=True)], [x + d for x, d in zip(w, move, strict=True)]]
        w = min(places, key=loss) if conservative else places[1]
        out.append([x.copy() for x in w])
    return out


def small_threshold(weights: np.ndarray, sparsity: float) -> float:
    """The largest size among the share 1 - sparsity of smallest weights (at least one weight)."""
    sizes = sorted(abs(float(x)) for x in weights.flatten())
    return sizes[max(1, len(sizes) - round(sparsity * len(sizes))) - 1]
