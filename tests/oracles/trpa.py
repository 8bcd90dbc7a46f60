"""TRPA (arXiv:2504.04524): the loss of each prompt and its derivative by every log-probability."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import LIMIT


def trpa(
    logp: Any,
    logp_ref: Any,
    logp_old: Any,
    rewards: Any,
    groups: Any,
    live: Any,
    beta: float = 0.1,
    anisotropy: float = 2.5,
    above: float = 0.5,
    coef: float = 1e-3,
) -> tuple[dict[int, float], dict[int, np.ndarray]]:
    """By group: its loss, and d loss / d logp [B,T]. `live` marks the decisions that count."""
    values, slopes = {}, {}
    for g in sorted({int(x) for x in groups}):
        rows = [i for i in range(len(groups)) if groups[i] == g and live[i].any()]
        h = {i: math.fsum(float(x) for x in (logp[i] - logp_ref[i])[live[i]]) / live[i].sum() for i in rows}
        pairs = [(i, j) for i in rows for j in rows if rewards[i] > rewards[j]]
        value, slope, by_h = 0.0, np.zeros(logp.shape), dict.fromkeys(rows, 0.0)
        for i, j in pairs:
            k = beta * (anisotropy if rewards[i] > above else 1.0)
            x = k * (h[i] - h[j])
            value += (math.log1p(math.exp(-abs(x))) + max(-x, 0.0)) / len(pairs)
            wrong = 1 / (1 + math.exp(x))
            by_h[i] -= k * wrong / len(pairs)
            by_h[j] += k * wrong / len(pairs)
        taken = [(i, int(t)) for i in rows for t in np.nonzero(live[i])[0]]
        for i, t in taken:
            d = float(logp[i, t] - logp_old[i, t])
            e = math.exp(min(-d, LIMIT))  # the exponent is limited as everywhere
            steep = e if -d <= LIMIT else 0.0
            value += coef * (e - 1 + d) / len(taken)
            slope[i, t] = by_h[i] / live[i].sum() + coef * (1 - steep) / len(taken)
        values[g], slopes[g] = value, slope
    return values, slopes
