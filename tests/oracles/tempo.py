"""TEMPO (arXiv:2509.18314): prefixes of decisions, compared one by one."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members, std


def decisions(tokens: Any, mask: Any) -> list[list[int]]:
    """The tokens of each rollout's decisions."""
    return [[int(x) for x, m in zip(row, on, strict=True) if m] for row, on in zip(tokens, mask, strict=True)]


def tempo(rewards: Any, groups: Any, tokens: Any, mask: Any, ddof: int = 0, eps: float = 1e-6) -> list[list[float]]:
    rows = decisions(tokens, mask)
    out = []
    for i in range(len(rewards)):
        peers = members(groups, i)
        values = [float(rewards[j]) for j in peers]
        mean, spread = math.fsum(values) / len(values), std(values, ddof)

        def value(n: int, i: int = i, peers: list[int] = peers) -> float:
            same = [float(rewards[j]) for j in peers if len(rows[j]) >= n and rows[j][:n] == rows[i][:n]]
            return math.fsum(same) / len(same)

        line, n = [], 0
        for t in range(len(mask[i])):
            if not mask[i][t] or all(v == values[0] for v in values):
                line.append(0.0)
                continue
            n += 1
            line.append((float(rewards[i]) - mean + value(n) - value(n - 1)) / (spread + eps))
        out.append(line)
    return out
