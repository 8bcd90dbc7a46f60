"""CODA (arXiv:2508.20096): the reward of an action against the right one, and the advantage of the plan behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reward(said: str, wanted: str, places: int) -> float:
    """Of an action such as c3 by the one that is wanted; both may be any text."""
    there = [str(d) for d in range(places)]
    total = 0.0
    for kind in sorted(set(said)):
        if said.startswith(kind) and wanted.startswith(kind):
            total += 1.0
            for i, here in enumerate(there):
                for j, right in enumerate(there):
                    if said == kind + here and wanted == kind + right:
                        total += 1.0 - math.fabs(i - j) / (places - 1)
    return total


def advantages(rewards: Sequence[float], groups: Sequence[int], eps: float = 1e-4) -> list[float]:
    """Sample standard deviation, as GRPO's."""
    out = []
    for r, g in zip(rewards, groups, strict=True):
        own = [x for x, h in zip(rewards, groups, strict=True) if h == g]
        mean = math.fsum(own) / len(own)
        if len(own) < 2 or max(own) == min(own):
            out.append(0.0)
            continue
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in own) / (len(own) - 1))
        out.append((r - mean) / (std + eps))
    return out
