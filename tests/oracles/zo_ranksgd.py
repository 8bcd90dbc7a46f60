"""ZO-RankSGD (arXiv:2303.03751)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def rank_estimate(shifts: Sequence[np.ndarray], order: Sequence[int], best: int) -> np.ndarray:
    """Mean of xi_j - xi_i over the pairs whose order is known: i among the `best` first, j anywhere after it."""
    total, pairs = np.zeros_like(shifts[0]), 0
    for place, i in enumerate(order[:best]):
        for j in order[place + 1 :]:
            total = total + shifts[j] - shifts[i]
            pairs += 1
    return total / pairs


def zo_ranksgd(
    weights: np.ndarray, loss: Callable[[np.ndarray], float], shift: Callable[[int, int], np.ndarray], steps: int,
    lr: float = 1e-3, mu: float = 1e-3, candidates: int = 10, best: int = 3, line_search: int = 1, shrink: float = 0.5,
    weight_decay: float = 0.0,
) -> list[np.ndarray]:  # fmt: skip
    """Weights [d] after each step; `shift(step, i)` is the i-th xi of a step."""
    w = np.array(weights, dtype=np.float64)
    out = []
    for step in range(steps):
        shifts = [shift(step, i) for i in range(candidates)]
        values = [loss(w + mu * xi) for xi in shifts]
        g = rank_estimate(shifts, sorted(range(candidates), key=lambda i: values[i]), best)
        w = w * (1 - lr * weight_decay)
        w = min((w - lr * shrink**power * g for power in range(line_search)), key=loss)
        out.append(w.copy())
    return out
