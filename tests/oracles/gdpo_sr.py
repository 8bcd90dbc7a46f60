"""Group DPO of GDPO-SR: one log-sigmoid a group of the advantages times the log-ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from oracles.dpo import log_sigmoid


def group_dpo(
    logp: np.ndarray,
    ref: np.ndarray,
    advantages: np.ndarray,
    groups: Sequence[int],
    live: np.ndarray,
    beta: float = 0.1,
    length: str = "mean",
) -> dict[int, float]:
    """The loss of each group. advantages [B] or [B,T]"""
    out = {}
    for g in sorted({int(g) for g in groups}):
        total = 0.0
        for i in range(len(groups)):
            if int(groups[i]) != g or not live[i].any():
                continue
            terms = [
                float(advantages[i] if advantages.ndim == 1 else advantages[i, t]) * float(logp[i, t] - ref[i, t])
                for t in np.nonzero(live[i])[0]
            ]
            total += math.fsum(terms) / (len(terms) if length == "mean" else 1)
        out[g] = -log_sigmoid(beta * total)
    return out
