"""DPO on the best and the worst of each group (arXiv:2305.18290), its kin, and what they are made of, with loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def log_ratio(logp: np.ndarray, ref: np.ndarray, live: np.ndarray, length: str) -> float:
    """Of one rollout. [T] each"""
    terms = [float(p) - float(q) for p, q, on in zip(logp, ref, live, strict=True) if on]
    return math.fsum(terms) if length == "sum" else mean(terms)


def sides(order: Sequence[float], rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows of the largest and of the smallest order; none where all are equal."""
    values = [float(order[i]) for i in rows]
    if not rows or max(values) == min(values):
        return [], []
    best = [i for i in rows if float(order[i]) == max(values)]
    return best, [i for i in rows if float(order[i]) == min(values)]


def members(groups: Sequence[int], live: np.ndarray) -> dict[int, list[int]]:
    """Rows of each group that have a decision that counts."""
    found: dict[int, list[int]] = {int(g): [] for g in groups}
    for i, g in enumerate(groups):
        if live[i].any():
            found[int(g)].append(i)
    return found


def dpo(
    logp: np.ndarray,
    ref: np.ndarray,
    rewards: Sequence[float],
    groups: Sequence[int],
    live: np.ndarray,
    *,
    beta: float = 0.1,
    link: str = "sigmoid",
    smoothing: float = 0.0,
    length: str = "sum",
    spread: float = 0.0,
) -> dict[int, float]:
    """The loss of each group."""

    def one(h: float) -> float:
        if link == "ipo":
            return (h - 1 / (2 * beta)) ** 2
        return -log_sigmoid(beta * h) if link == "sigmoid" else max(0.0, 1 - beta * h)

    out = {}
    for g, rows in members(groups, live).items():
        best, worst = sides(rewards, rows)
        if not best:
            out[g] = 0.0
            continue
        rho = {i: log_ratio(logp[i], ref[i], live[i], length) for i in rows}
        h = mean([rho[i] for i in best]) - mean([rho[i] for i in worst])
        middle = mean([rho[i] for i in best])
        variance = mean([(rho[i] - middle) ** 2 for i in best])
        out[g] = (1 - smoothing) * one(h) + smoothing * one(-h) + spread * variance
    return out


def slope(loss: Callable[[np.ndarray], dict[int, float]], logp: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d sum of the groups' losses / d logp, by central differences. [B,T]"""
    out = np.zeros(logp.shape)
    for place in np.ndindex(logp.shape):
        up, down = logp.copy(), logp.copy()
        up[place] += step
        down[place] -= step
        out[place] = (math.fsum(loss(up).values()) - math.fsum(loss(down).values())) / (2 * step)
    return out
