"""MA-RLHF (arXiv:2410.02743): lists of macro actions, and the recursion of the estimate."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members


def macros(length: int, size: int) -> list[list[int]]:
    """Places of the decisions of each macro action."""
    if not length:
        return []
    starts = [*range(0, length - 1, size), length - 1]
    return [list(range(a, b)) for a, b in zip(starts, [*starts[1:], length], strict=True)]


def macro_gae(
    token_rewards: Any,
    mask: Any,
    groups: Any,
    size: int = 5,
    gamma: float = 1.0,
    lam: float = 0.95,
    value: str = "group",
) -> list[list[float]]:
    rewards, cut, columns = [], [], []
    for i in range(len(mask)):
        own = [t for t in range(len(mask[i])) if mask[i][t]]
        parts = macros(len(own), size)
        columns.append(own)
        cut.append(parts)
        rewards.append([math.fsum(float(token_rewards[i][own[p]]) for p in part) / len(part) for part in parts])
    out = [[0.0] * len(row) for row in mask]
    for i in range(len(mask)):
        returns = [math.fsum(rewards[j]) for j in members(groups, i)]
        v = math.fsum(returns) / len(returns) if value == "group" else 0.0
        running = 0.0
        for k in reversed(range(len(cut[i]))):
            after = v if k + 1 < len(cut[i]) else 0.0
            running = rewards[i][k] + gamma * after - v + gamma * lam * running
            for p in cut[i][k]:
                out[i][columns[i][p]] = running
    return out
