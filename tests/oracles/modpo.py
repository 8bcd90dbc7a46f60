"""MODPO (arXiv:2310.03708): a preference with a margin for the other objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from oracles.dpo import log_ratio, log_sigmoid, mean, members, sides


def modpo(
    logp: np.ndarray,
    ref: np.ndarray,
    scores: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    groups: Sequence[int],
    live: np.ndarray,
    preference: str,
    beta: float = 0.1,
    link: str = "sigmoid",
) -> dict[int, float]:
    """The loss of each group."""
    out = {}
    for g, rows in members(groups, live).items():
        best, worst = sides(scores[preference], rows)
        if not best:
            out[g] = 0.0
            continue
        rho = {i: log_ratio(logp[i], ref[i], live[i], "sum") for i in rows}
        x = beta * (mean([rho[i] for i in best]) - mean([rho[i] for i in worst]))
        for name, values in scores.items():
            if name != preference:
                known = {i: 0.0 if math.isnan(values[i]) else float(values[i]) for i in rows}
                x -= weights[name] * (mean([known[i] for i in best]) - mean([known[i] for i in worst]))
        x /= weights[preference]
        out[g] = -log_sigmoid(x) if link == "sigmoid" else max(0.0, 1 - x)
    return out
