"""Consensus-based optimisation (arXiv:2306.09778)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def cbo(
    particles: np.ndarray, loss: Callable[[np.ndarray], float], kick: Callable[[int, int], np.ndarray], steps: int,
    lr: float = 0.1, alpha: float = 30.0, sigma: float = 1.0, noise: str = "anisotropic",
) -> tuple[list[np.ndarray], list[np.ndarray]]:  # fmt: skip
    """Consensus [d] and particles [N,d] after each step; `kick(step, i)` is the normal of a particle."""
    x = np.array(particles, dtype=np.float64)
    consensus, clouds = [], []
    for step in range(steps):
        top, bottom = np.zeros(x.shape[1]), 0.0
        values = [loss(row) for row in x]
        for row, value in zip(x, values, strict=True):
            weight = math.exp(-alpha * (value - min(values)))
            top, bottom = top + weight * row, bottom + weight
        c = top / bottom
        new = x.copy()
        for i in range(len(x)):
            distance = math.sqrt(sum((x[i, j] - c[j]) ** 2 for j in range(len(c))))
            xi = kick(step, i)
            for j in range(len(c)):
                reach = distance if noise == "isotropic" else abs(x[i, j] - c[j])
                new[i, j] = x[i, j] - lr * (x[i, j] - c[j]) + sigma * math.sqrt(lr) * reach * xi[j]
        x = new
        consensus.append(c)
        clouds.append(x.copy())
    return consensus, clouds
