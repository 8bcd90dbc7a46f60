"""N-PG-IGT and (N)-HARPG (arXiv:2302.01734), for a loss to be lowered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Gradient = Callable[[np.ndarray], np.ndarray]


def n_pg_igt(weights: np.ndarray, gradient: Gradient, steps: int, lr: float, eta: float) -> list[np.ndarray]:
    """Weights [d] after each step; the first momentum is the first gradient."""
    now = before = np.array(weights, dtype=np.float64)
    d, out = None, []
    for _ in range(steps):
        g = gradient(now + (1 - eta) / eta * (now - before))
        d = g if d is None else (1 - eta) * d + eta * g
        before, now = now, now - lr * d / np.sqrt((d**2).sum())
        out.append(now)
    return out


def harpg(
    weights: np.ndarray, gradient: Gradient, between: Callable[[int], float], steps: int, lr: float, eta: float,
    radius: float, normalise: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """Weights [d] after each step; `between(step)` says where on the way from the last weights the curvature is taken,
    as a difference of gradients."""
    now = before = np.array(weights, dtype=np.float64)
    d, out = None, []
    for step in range(steps):
        g = gradient(now)
        if d is None:
            d = g
        else:
            u = now - before
            y = before + between(step) * u
            curvature = (gradient(y + radius * u) - gradient(y - radius * u)) / (2 * radius)
            d = (1 - eta) * (d + curvature) + eta * g
        before, now = now, now - lr * d / (np.sqrt((d**2).sum()) if normalise else 1.0)
        out.append(now)
    return out
