"""V0.5 (arXiv:2603.10848): a prior shrunk towards the mean of a few rollouts by the part of their distance that chance
does not explain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.spo_single import standardised


def baseline(rewards: Sequence[float], value: float, trust: float = 1.0) -> float:
    n, mean = len(rewards), math.fsum(rewards) / len(rewards)
    sampling = value * (1 - value) / n
    bias = max(0.0, (mean - value) ** 2 - trust**2 * sampling)
    w = bias / (bias + sampling) if bias > 0 else 0.0
    return w * mean + (1 - w) * value


def v05(
    rewards: Sequence[float],
    prompts: Sequence[int],
    counts: dict[int, tuple[float, float]],
    given: Sequence[float] | None = None,
    trust: float = 1.0,
    prior: float = 0.5,
    count: float = 1.0,
    keep: float = 0.96,
    whiten: bool = True,
) -> list[float]:
    """`counts` is the record of earlier visits, brought up to date; `given` are a model's priors, NaN for none."""
    out = [0.0] * len(rewards)
    for p in set(prompts):
        rows = [i for i, q in enumerate(prompts) if q == p]
        won, lost = counts.get(p, (prior * count, (1 - prior) * count))
        rate = won / (won + lost)
        value = rate
        if given is not None:
            value = math.fsum(rate if math.isnan(given[i]) else given[i] for i in rows) / len(rows)
        value = min(max(value, 0.0), 1.0)
        mine = [float(rewards[i]) for i in rows]
        b = baseline(mine, value, trust)
        for i in rows:
            out[i] = float(rewards[i]) - b
        if p >= 0:
            hits = math.fsum(min(max(r, 0.0), 1.0) for r in mine)
            counts[p] = (keep * won + hits, keep * lost + len(mine) - hits)
    return standardised(out) if whiten else out
