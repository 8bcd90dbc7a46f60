"""SPINE (arXiv:2511.17938): the vote, the forks, the band."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from oracles.group_norm import members


def vote(answers: Any, groups: Any, leave_out: bool = False) -> list[float]:
    out = []
    for i in range(len(groups)):
        peers = [int(answers[j]) for j in members(groups, i) if not (leave_out and j == i)]
        count = Counter(peers)
        given = sum(1 for j in members(groups, i) if answers[j] == answers[i])
        most = max(count.values(), default=0)
        out.append(1.0 if given >= 2 and count[int(answers[i])] == most else 0.0)
    return out


def top(score: Any, live: Any, share: float) -> list[list[bool]]:
    """Of a list of rows taken together, the highest; the earlier of equals."""
    places = [(i, t) for i, t in zip(*np.nonzero(live), strict=True)]
    places.sort(key=lambda p: -float(score[p]))
    kept = set(places[: math.ceil(share * len(places) - 1e-9)])
    return [[(i, t) in kept for t in range(live.shape[1])] for i in range(live.shape[0])]


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def band(entropy: Any, mask: Any, coef: float, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] values and derivatives by the entropy."""
    value, slope = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in range(len(mask)):
        own = [float(h) for h, m in zip(entropy[i], mask[i], strict=True) if m]
        for t in range(len(mask[i])):
            if mask[i][t]:
                h, bottom, ceiling = float(entropy[i][t]), quantile(own, low), quantile(own, high)
                value[i, t] = coef * (max(0.0, h - ceiling) + max(0.0, bottom - h))
                slope[i, t] = coef * ((h > ceiling) - (h < bottom))
    return value, slope
