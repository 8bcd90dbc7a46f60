"""GRPO's advantage (arXiv:2402.03300) and its unscaled form (Dr. GRPO, arXiv:2503.20783)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def members(groups: Sequence[int], i: int) -> list[int]:
    return [j for j in range(len(groups)) if groups[j] == groups[i]]


def std(values: Sequence[float], ddof: int) -> float:
    n = len(values)
    if n <= ddof:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - ddof))


def group_norm(
    rewards: Sequence[float], groups: Sequence[int], scale: str = "std", ddof: int = 1, eps: float = 1e-4
) -> list[float]:
    out = []
    for i in range(len(rewards)):
        peers = [float(rewards[j]) for j in members(groups, i)]
        if all(p == peers[0] for p in peers):
            out.append(0.0)
            continue
        a = float(rewards[i]) - math.fsum(peers) / len(peers)
        if scale == "std":
            a /= std(peers, ddof) + eps
        elif scale == "batch_std":
            a /= std([float(r) for r in rewards], ddof) + eps
        out.append(a)
    return out
