"""URPA (arXiv:2508.06317): a group's mean interval as label, and the confidence in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def named(start: Sequence[float], end: Sequence[float], rows: Sequence[int]) -> list[int]:
    return [j for j in rows if not (math.isnan(start[j]) or math.isnan(end[j]) or end[j] < start[j])]


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union if union > 0 else 1.0


def rewards(start: Sequence[float], end: Sequence[float], groups: Sequence[int]) -> list[float]:
    out = []
    for i in range(len(start)):
        rows = named(start, end, members(groups, i))
        if i not in rows:
            out.append(0.0)
            continue
        label = tuple(math.fsum(float(x[j]) for j in rows) / len(rows) for x in (start, end))
        out.append(overlap((float(start[i]), float(end[i])), label))  # type: ignore[arg-type]
    return out


def confidence(start: Sequence[float], end: Sequence[float], groups: Sequence[int], width: float = 1.0) -> list[float]:
    out = []
    for i in range(len(start)):
        rows, scatter = named(start, end, members(groups, i)), 0.0
        for x in (start, end):
            mean = math.fsum(float(x[j]) for j in rows) / max(len(rows), 1)
            scatter += math.fsum((float(x[j]) - mean) ** 2 for j in rows) / max(len(rows), 1)
        out.append(math.exp(-scatter / width**2))
    return out
