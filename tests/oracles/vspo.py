"""VSPO's places (arXiv:2512.07478): values of prompts, shares of the free places, and weights. Plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def values(groups: Sequence[Sequence[float]]) -> list[float]:
    out = []
    for rewards in groups:
        n = len(rewards)
        mean = sum(rewards) / n
        std = (sum((r - mean) ** 2 for r in rewards) / n) ** 0.5
        out.append(0.0 if max(rewards) == min(rewards) else max(1 - mean, 0.0) * std)
    return out


def shares(groups: Sequence[Sequence[float]]) -> list[float]:
    v = values(groups)
    differs = [max(rewards) != min(rewards) for rewards in groups]
    if sum(v) == 0:
        return [d / max(sum(differs), 1) for d in differs]
    return [x / sum(v) for x in v]


def weights(groups: Sequence[Sequence[float]], most: float) -> list[float]:
    differs = [max(rewards) != min(rewards) for rewards in groups]
    free = len(groups) - sum(differs)
    if free == 0:
        return [1.0] * len(groups)
    places = [min(1 + free * s, most) if d else 0.0 for s, d in zip(shares(groups), differs, strict=True)]
    return [p * sum(differs) / sum(places) if p else 0.0 for p in places]


def of_rows(rewards: np.ndarray, groups: np.ndarray, live: np.ndarray, most: float) -> np.ndarray:
    """For each row the weight of its group, 0 for groups of which no row is live."""
    here = [g for g in sorted(set(groups.tolist())) if any(live[i] for i in range(len(live)) if groups[i] == g)]
    members = [[float(rewards[i]) for i in range(len(rewards)) if groups[i] == g] for g in here]
    of_group = dict(zip(here, weights(members, most), strict=True))
    return np.array([of_group.get(int(g), 0.0) for g in groups])
