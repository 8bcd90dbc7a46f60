"""Granular-GRPO in plain loops: rewards by granularity and member, normalised by granularity and added."""

from __future__ import annotations

import math


def advantages(rewards, eps=1e-8, ddof=1):
    """rewards[g][j] of one prompt and step -> what each member j is worth, before the clamp."""
    out = [0.0] * len(rewards[0])
    for row in rewards:
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - ddof)) if len(row) > ddof else 0.0
        for j, r in enumerate(row):
            out[j] += 0.0 if max(row) == min(row) else (r - mean) / (std + eps)
    return out


def tail(levels, k, stride):
    """The noise levels after step k's noise: where the model is called, then 0."""
    kept = levels[: k + 2] + levels[k + 2 :: stride]
    return [*kept[k + 1 : -1], 0.0]
