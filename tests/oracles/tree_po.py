"""TreePO's advantage (arXiv:2508.17445), rollout by rollout and depth by depth."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members
from oracles.tempo import decisions


def tree_po(
    rewards: Any,
    groups: Any,
    tokens: Any,
    mask: Any,
    segment: int = 512,
    weights: str = "equal",
    skip_constant: bool = False,
    scale: str = "batch_std",
    eps: float = 1e-8,
) -> list[float]:
    rows = decisions(tokens, mask)
    raw = []
    for i in range(len(rewards)):
        above = below = 0.0
        for depth in range(len(rows[i]) // segment + 1):
            n = depth * segment
            peers = [j for j in members(groups, i) if len(rows[j]) >= n and rows[j][:n] == rows[i][:n]]
            values = [float(rewards[j]) for j in peers]
            constant = all(v == values[0] for v in values)
            if depth and (len(peers) < 2 or (skip_constant and constant)):
                continue
            weight = len(peers) if weights == "size" else 1
            above += weight * (0.0 if constant else float(rewards[i]) - math.fsum(values) / len(values))
            below += weight
        raw.append(above / below)
    if scale == "none":
        return raw
    spread = [x for x, row in zip(raw, rows, strict=True) for _ in row]
    if len(spread) < 2 or all(x == spread[0] for x in spread):
        return [0.0] * len(raw)
    mean = math.fsum(spread) / len(spread)
    variance = math.fsum((x - mean) ** 2 for x in spread) / (len(spread) - 1)
    return [(x - mean) / math.sqrt(variance + eps) for x in raw]
