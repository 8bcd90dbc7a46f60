"""DRPO (arXiv:2510.04474): the loss of each prompt and its derivative by every log-probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def drpo(
    logp: np.ndarray,
    logp_old: np.ndarray,
    rewards: Sequence[float],
    lengths: Sequence[int],
    groups: Sequence[int],
    live: np.ndarray,
    longest: float,
    lam: float = 0.1,
    tau: float = 10.0,
    beta: float = 1000.0,
    delta: float = 1e-4,
    above: float = 0.5,
) -> tuple[dict[int, float], dict[int, np.ndarray]]:
    """By group: its loss, and d loss / d logp [B,T]. `live` marks the decisions that count."""
    values, slopes = {}, {}
    for g in sorted(set(int(h) for h in groups)):
        rows = [i for i in range(len(groups)) if groups[i] == g and live[i].any()]
        right, wrong = [i for i in rows if rewards[i] > above], [i for i in rows if not rewards[i] > above]
        count = {i: int(live[i].sum()) for i in rows}
        s = {i: math.fsum(float(x) for x in logp[i][live[i]]) / count[i] for i in rows}
        slope, value = np.zeros(logp.shape), 0.0
        if right and wrong:
            w = {i: math.exp((1 - lengths[i] / longest) / lam) for i in right}
            whole = math.fsum(w.values())
            e = {j: math.exp(s[j] / tau) for j in wrong}
            value -= math.fsum(w[i] / whole * s[i] for i in right)
            value += tau * math.log(math.fsum(e.values()) / len(wrong))
            for i in right:
                slope[i][live[i]] -= w[i] / whole / count[i]
            for j in wrong:
                slope[j][live[j]] += e[j] / math.fsum(e.values()) / count[j]
        taken = sum(count.values())
        if taken:
            kl = math.fsum(float(x) for i in rows for x in (logp_old[i] - logp[i])[live[i]]) / taken
            strength = beta * max(kl - delta, 0.0)
            value += strength * kl
            for i in rows:
                slope[i][live[i]] -= strength / taken
        values[g], slopes[g] = value, slope
    return values, slopes
