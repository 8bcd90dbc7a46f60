"""HESSO (arXiv:2409.09085) with AdamW underneath, on matrices whose rows are pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def scores(matrices: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> list[float]:
    """One a row, all matrices' rows after each other: the mean of five, each over its norm over all rows."""
    rows = [(x, g) for w, by in zip(matrices, gradients, strict=True) for x, g in zip(w, by, strict=True)]
    five: list[list[float]] = [[], [], [], [], []]
    for x, g in rows:
        size, slope = math.sqrt(sum(a * a for a in x)), sum(a * b for a, b in zip(x, g, strict=True))
        steep = math.sqrt(sum(b * b for b in g))
        five[0].append(size)
        five[1].append(size / math.sqrt(len(x)))
        five[2].append(1 - slope / ((size + 1e-8) * (steep + 1e-8)))
        five[3].append(abs(slope))
        five[4].append(slope**2 / 2)
    norms = [math.sqrt(sum(s * s for s in one)) + 1e-8 for one in five]
    return [sum(one[r] / norm for one, norm in zip(five, norms, strict=True)) / 5 for r in range(len(rows))]


def hesso(
    weights: Sequence[np.ndarray], gradient: Callable[[list[np.ndarray]], list[np.ndarray]], steps: int,
    lr: float = 1e-3, sparsity: float = 0.5, start: int = 0, period: int = 100, periods: int = 1,
    weight_decay: float = 0.0,
) -> list[list[np.ndarray]]:  # fmt: skip
    """Weights after each step."""
    w = [np.array(x, dtype=np.float64) for x in weights]
    m, v = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w]
    place = [(i, r) for i, x in enumerate(w) for r in range(len(x))]
    pruned: list[int] = []
    shrinking: list[int] = []
    out = []
    for n in range(steps):
        g = gradient(w)
        k = n - start
        if 0 <= k < periods * period and k % period == 0:
            found = scores(w, g)
            kept = set()
            for i in range(len(w)):  # the best row of each stays
                kept.add(
                    max((r for r, (o, _) in enumerate(place) if o == i and r not in pruned), key=found.__getitem__)
                )
            due = min(int(sparsity * (k // period + 1) / periods * len(place)), len(place) - len(w))
            order = sorted((r for r in range(len(place)) if r not in pruned and r not in kept), key=found.__getitem__)
            shrinking = order[: due - len(pruned)]
        for i in range(len(w)):
            for j in np.ndindex(w[i].shape):
                m[i][j] = 0.9 * m[i][j] + 0.1 * g[i][j]
                v[i][j] = 0.999 * v[i][j] + 0.001 * g[i][j] ** 2
                root = math.sqrt(v[i][j] / (1 - 0.999 ** (n + 1))) + 1e-8
                w[i][j] = w[i][j] * (1 - lr * weight_decay) - lr * m[i][j] / (1 - 0.9 ** (n + 1)) / root
        if 0 <= k < periods * period:
            for r in shrinking:
                left = period - k % period
                w[place[r][0]][place[r][1]] *= (left - 1) / left
            if k % period == period - 1:
                pruned, shrinking = pruned + shrinking, []
        for r in pruned:
            w[place[r][0]][place[r][1]] = 0.0
        out.append([x.copy() for x in w])
    return out
