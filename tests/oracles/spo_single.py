"""SPO (arXiv:2509.13232): a Beta tracker for each prompt, as dictionaries, one rollout after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence


def standardised(x: Sequence[float], eps: float = 1e-8) -> list[float]:
    if len(x) < 2 or all(v == x[0] for v in x):
        return [0.0] * len(x)
    mean = math.fsum(x) / len(x)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))
    return [(v - mean) / (std + eps) for v in x]


def forgetting(drift: float, half_life: float = 0.06, least: float = 0.875, most: float = 0.96) -> float:
    return min(max(2 ** (-drift / half_life), least), most)


def spo(
    rewards: Sequence[float],
    prompts: Sequence[int],
    drift: Sequence[float],
    counts: dict[int, tuple[float, float]],
    prior: float = 0.5,
    count: float = 1.0,
    whiten: bool = True,
    **limits: float,
) -> list[float]:
    """`counts` is the tracker, brought up to date. Rollouts of one prompt see the same counts and are added up."""
    first = (prior * count, (1 - prior) * count)
    before = {p: counts.get(p, first) for p in prompts}
    raw = [r - before[p][0] / (before[p][0] + before[p][1]) for r, p in zip(rewards, prompts, strict=True)]
    for p in set(prompts):
        if p < 0:
            continue
        mine = [min(max(r, 0.0), 1.0) for r, q in zip(rewards, prompts, strict=True) if q == p]
        rho = forgetting(next(d for d, q in zip(drift, prompts, strict=True) if q == p), **limits)
        counts[p] = (rho * before[p][0] + sum(mine), rho * before[p][1] + len(mine) - sum(mine))
    return standardised(raw) if whiten else raw
