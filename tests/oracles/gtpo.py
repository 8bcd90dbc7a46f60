"""GTPO (arXiv:2508.03772), completion by completion and token by token."""

from __future__ import annotations

from typing import Any

from oracles.group_norm import members
from oracles.tempo import decisions


def runs(advantages: list[list[float]], rows: list[list[int]], groups: Any) -> list[int]:
    """Length of each row's beginning whose tokens all stand at the same place in a row of the other sign."""
    out = []
    for i in range(len(rows)):
        length = 0
        for t in range(len(rows[i])):
            met = False
            for j in members(groups, i):
                if t < len(rows[j]) and rows[j][t] == rows[i][t] and advantages[i][t] * advantages[j][t] < 0:
                    met = True
            if not met:
                break
            length += 1
        out.append(length)
    return out


def gtpo(
    advantages: Any,
    tokens: Any,
    entropy: Any,
    groups: Any,
    mask: Any,
    boost: float = 2.0,
    entropy_scale: float = 0.1,
    max_entropy: float = 0.7,
    count: str = "code",
) -> list[list[float]]:
    rows = decisions(tokens, mask)
    wide = [[float(a)] * len(m) if not hasattr(a, "__len__") else a for a, m in zip(advantages, mask, strict=True)]
    a = [[float(x) for x, m in zip(line, on, strict=True) if m] for line, on in zip(wide, mask, strict=True)]
    begin = runs(a, rows, groups)
    end = runs([x[::-1] for x in a], [r[::-1] for r in rows], groups)
    out = []
    for i in range(len(rows)):
        length = len(rows[i])
        own = [float(h) for h, m in zip(entropy[i], mask[i], strict=True) if m]
        mean = sum(own) / length if length else 0.0
        together = sum(t < begin[i] or t >= length - end[i] for t in range(length))
        number = max(1, together if count == "union" else max(begin[i], end[i]))
        line = []
        for t in range(length):
            delta = 1.0
            for inside in (t < begin[i], t >= length - end[i]):
                if inside:
                    delta *= boost if a[i][t] > 0 else 0.0
            line.append((a[i][t] - entropy_scale * mean) * delta / number if mean <= max_entropy else 0.0)
        values = iter(line)
        out.append([next(values) if m else 0.0 for m in mask[i]])
    return out
