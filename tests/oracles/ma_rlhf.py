"""MA-RLHF (arXiv:2410.02743): lists of macro actions, and the recursion of the estimate."""

from __future__ import annotations

import itertools
import math
from typing import Any

from oracles.group_norm import members


def macros(length: int, size: int) -> list[list[int]]:
    """Places of the decisions of each macro action."""
    if not length:
        return []
    starts = [*range(0, length - 1, size), length - 1]
    return [list(range(a, b)) for a, b in zip(starts, [*starts[1:], length], strict=True)]


def parts_of(length: int, starts: list[int]) -> list[list[int]]:
    """Macro actions that begin at these places, the last decision by itself."""
    bounds = sorted({*(p for p in starts if p < length), length - 1, length})
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds)] if length else []


def by_perplexity(logp: list[float]) -> list[list[int]]:
    return parts_of(len(logp), [0] + [t for t in range(1, len(logp)) if -logp[t] > -logp[t - 1]])


def by_lengths(length: int, lengths: list[int]) -> list[list[int]]:
    return parts_of(length, [sum(lengths[:k]) for k in range(len(lengths))])


def macro_gae(
    token_rewards: Any,
    mask: Any,
    groups: Any,
    size: int = 5,
    gamma: float = 1.0,
    lam: float = 0.95,
    value: str = "group",
    cuts: Any = None,
) -> list[list[float]]:
    rewards, cut, columns = [], [], []
    for i in range(len(mask)):
        own = [t for t in range(len(mask[i])) if mask[i][t]]
        parts = macros(len(own), size) if cuts is None else cuts[i]
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
