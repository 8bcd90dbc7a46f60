"""PAMA (arXiv:2508.07768): the simplex weights that make (sum_k c_k v_k)^2 smallest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oracles.group_norm import members, std


def weights(v: Sequence[float]) -> list[float]:
    """All weight on the value nearest to 0 where all have one sign; else the two extremes are mixed to 0."""
    top, bottom = max(range(len(v)), key=lambda k: v[k]), min(range(len(v)), key=lambda k: v[k])
    out = [0.0] * len(v)
    if v[bottom] < 0 < v[top]:
        share = -v[bottom] / (v[top] - v[bottom])
        out[top], out[bottom] = share, 1 - share
    else:
        out[min(range(len(v)), key=lambda k: abs(v[k]))] = 1.0
    return out


def pama(
    components: Mapping[str, Sequence[float]],
    signs: Mapping[str, float],
    groups: Sequence[int],
    negative: bool = False,
    ddof: int = 1,
    eps: float = 1e-4,
) -> list[float]:
    out = []
    for i in range(len(groups)):
        values = []
        for name, column in components.items():
            peers = [float(column[j]) for j in members(groups, i) if not math.isnan(column[j])]
            if signs[name] == 0 or math.isnan(column[i]) or max(peers) == min(peers):
                continue
            a = (float(column[i]) - math.fsum(peers) / len(peers)) / (std(peers, ddof) + eps)
            a *= math.copysign(1.0, signs[name])
            values.append(a if negative else max(a, 0.0))
        out.append(math.fsum(c * v for c, v in zip(weights(values), values, strict=True)) if values else 0.0)
    return out
