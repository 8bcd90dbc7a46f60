"""COSMOS (arXiv:2502.17410) on one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def newton_schulz(x: np.ndarray, steps: int = 5) -> np.ndarray:
    """On the singular values, which is what the iteration does to a matrix."""
    left, values, right = np.linalg.svd(x / (np.linalg.norm(x) + 1e-7), full_matrices=False)
    for i in range(len(values)):
        s = values[i]
        for _ in range(steps):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        values[i] = s
    return left @ np.diag(values) @ right


def cosmos(
    weights: np.ndarray, gradients: Sequence[np.ndarray], lr: float = 1e-3, beta1: float = 0.95, beta2: float = 0.95,
    eps: float = 1e-8, weight_decay: float = 0.0, rank: int = 64, gamma: float = 0.2, lr_ratio: float = 0.1,
) -> list[np.ndarray]:  # fmt: skip
    """Weights [m,n] after each step."""
    w = np.array(weights, dtype=np.float64)
    rows, columns = w.shape
    rank, scale = min(rank, rows, columns), np.sqrt(rows * columns)
    momentum, v = np.zeros_like(w), np.zeros((rows, rank))
    basis, seen = np.zeros((columns, rank)), np.zeros((rank, rank))
    out = []
    for t, g in enumerate(gradients, start=1):
        momentum = beta1 * momentum + g
        if t == 1:
            basis = np.linalg.svd(g.T @ g)[0][:, :rank]
            seen = (1 - beta2) * basis.T @ g.T @ g @ basis
        else:
            old = basis
            basis, _ = np.linalg.qr(beta2 * old @ seen + (1 - beta2) * g.T @ g @ old)
            seen = beta2 * basis.T @ old @ seen @ old.T @ basis + (1 - beta2) * basis.T @ g.T @ g @ basis
        low = g @ basis
        for i in range(rows):
            for j in range(rank):
                v[i, j] = beta2 * v[i, j] + (1 - beta2) * low[i, j] ** 2
        u = (g + beta1 * momentum) / (1 + beta1 * (1 - beta1**t) / (1 - beta1))
        projected = u @ basis
        adam = np.zeros((rows, rank))
        for i in range(rows):
            for j in range(rank):
                adam[i, j] = projected[i, j] / (np.sqrt(v[i, j] / (1 - beta2**t)) + eps)
        d = adam @ basis.T
        rest = u - projected @ basis.T
        if np.linalg.norm(rest) > 1e-12 * np.linalg.norm(u):
            rest = newton_schulz(rest)
            d = d + gamma * scale * rest / (np.linalg.norm(rest) + eps)
        w = w * (1 - lr * weight_decay) - scale * lr_ratio * lr * d / (np.linalg.norm(d) + eps)
        out.append(w.copy())
    return out
