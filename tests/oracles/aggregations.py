"""How decisions become one number, as means over lists of rows; and the chain value -> scalar -> gradient.

Decisions of weight 0 are as if they had never been taken: they count in no numerator and no denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(weights: Any, mask: Any) -> np.ndarray:
    out = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        out[i, t] = float(weights[i] if weights.ndim == 1 else weights[i, t])
    return out


def _groups(groups: Sequence[int], rows: list[int]) -> list[list[int]]:
    return [[i for i in rows if groups[i] == g] for g in sorted({int(groups[i]) for i in rows})]


def coefficients(
    name: str, weights: Any, mask: Any, groups: Sequence[int], scope: str = "batch", length: float = 1.0
) -> np.ndarray:
    """What the scalar loss gains when one decision's loss grows by 1."""
    w = spread(weights, mask)
    taken = {i: [t for t in range(mask.shape[1]) if w[i, t] != 0] for i in range(mask.shape[0])}
    rows = [i for i in taken if taken[i]]
    out = np.zeros(mask.shape)
    pools = [rows] if scope == "batch" else _groups(groups, rows)
    for pool in pools:
        decisions = sum(len(taken[i]) for i in pool)
        for i in pool:
            for t in taken[i]:
                if name == "token":
                    out[i, t] = w[i, t] / decisions / len(pools)
                elif name == "sequence":
                    out[i, t] = w[i, t] / len(taken[i]) / len(pool) / len(pools)
                else:
                    out[i, t] = w[i, t] / (len(rows) * length)
    return out


def chain(value: np.ndarray, derivative: np.ndarray, coefficient: np.ndarray) -> tuple[float, np.ndarray]:
    """The scalar loss and its gradient by logp. A [B] value takes its row's whole coefficient."""
    total, gradient = [], np.zeros(coefficient.shape)
    for i in range(coefficient.shape[0]):
        row = math.fsum(coefficient[i])
        for t in range(coefficient.shape[1]):
            total.append(coefficient[i, t] * (value[i] if value.ndim == 1 else value[i, t]))
            gradient[i, t] = (row if value.ndim == 1 else coefficient[i, t]) * derivative[i, t]
    return math.fsum(total), gradient
