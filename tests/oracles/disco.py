"""DisCO (arXiv:2505.12366): the loss of each prompt and its derivative by every log-probability."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ratios import token_ratio


def disco(
    logp: Any,
    logp_old: Any,
    rewards: Any,
    groups: Any,
    live: Any,
    score: str = "logp",
    tau: float | None = 10.0,
    kl: str = "k1",
    beta: float = 1000.0,
    delta: float = 1e-4,
    above: float = 0.5,
) -> tuple[dict[int, float], dict[int, np.ndarray]]:
    """By group. tau None: wrong rollouts are averaged (DisCO-b)."""
    ratio, by_logp = token_ratio(logp, logp_old, live)
    values, slopes = {}, {}
    for g in sorted({int(x) for x in groups}):
        rows = [i for i in range(len(groups)) if groups[i] == g and live[i].any()]
        right, wrong = [i for i in rows if rewards[i] > above], [i for i in rows if not rewards[i] > above]
        places = {i: [int(t) for t in np.nonzero(live[i])[0]] for i in rows}
        term = logp if score == "logp" else ratio
        s = {i: math.fsum(float(term[i, t]) for t in places[i]) / len(places[i]) for i in rows}
        value, slope, pull = 0.0, np.zeros(logp.shape), dict.fromkeys(rows, 0.0)
        if right and wrong:
            value -= math.fsum(s[i] for i in right) / len(right)
            if tau is None:
                value += math.fsum(s[j] for j in wrong) / len(wrong)
                share = {j: 1 / len(wrong) for j in wrong}
            else:
                top = max(s[j] / tau for j in wrong)
                e = {j: math.exp(s[j] / tau - top) for j in wrong}
                value += tau * (top + math.log(math.fsum(e.values()) / len(wrong)))
                share = {j: e[j] / math.fsum(e.values()) for j in wrong}
            pull |= dict.fromkeys(right, -1 / len(right)) | share
        taken = [(i, t) for i in rows for t in places[i]]
        distance, by = 0.0, {}
        for i, t in taken:
            d = float(logp[i, t] - logp_old[i, t])
            e = math.exp(min(d, 20.0))
            distance += (-d if kl == "k1" else e - 1 - d) / len(taken)
            by[i, t] = (-1.0 if kl == "k1" else (e if d <= 20.0 else 0.0) - 1) / len(taken)
        strength = beta * max(distance - delta, 0.0)
        for i, t in taken:
            slope[i, t] = pull[i] / len(places[i]) * (1.0 if score == "logp" else by_logp[i, t]) + strength * by[i, t]
        values[g], slopes[g] = value + strength * distance, slope
    return values, slopes
