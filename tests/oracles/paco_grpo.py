"""PaCo-GRPO (arXiv:2512.04784): the weighted sum of rewards, those of large variation by their logarithm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from oracles.group_norm import std


def variations(components: Mapping[str, Sequence[float]], eps: float = 1e-6) -> dict[str, float]:
    out = {}
    for name, column in components.items():
        seen = [float(x) for x in column if not math.isnan(x)]
        if seen:
            out[name] = std(seen, 0) / (abs(math.fsum(seen) / len(seen)) + eps)
    return out


def log_tamed(
    components: Mapping[str, Sequence[float]], weights: Mapping[str, float], above: float | str = "mean"
) -> list[float]:
    counted = {name: column for name, column in components.items() if weights[name] != 0}
    h = variations(counted)
    if above == "mean":
        limit = math.fsum(h.values()) / max(len(h), 1)
    else:
        limit = statistics.median(h.values()) if above == "median" else float(above)
    out = []
    for i in range(len(next(iter(components.values())))):
        total = 0.0
        for name, column in counted.items():
            r = float(column[i])
            if math.isnan(r):
                continue
            tame = math.copysign(math.log(1 + abs(r)), r)
            total += weights[name] * (tame if h[name] > limit else r)
        out.append(total)
    return out
