"""GCPO (arXiv:2506.07160): a bonus or a malus for a habit, by what it does to accuracy on the same prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def contrast(groups: Sequence[int], correct: Sequence[bool], habit: Sequence[float], margin: float) -> list[int]:
    out = []
    for i in range(len(groups)):
        peers = members(groups, i)
        has = [bool(correct[j]) for j in peers if habit[j] > 0.5]
        lacks = [bool(correct[j]) for j in peers if not habit[j] > 0.5]
        gain = sum(has) / len(has) - sum(lacks) / len(lacks) if has and lacks else 0.0
        out.append(0 if abs(gain) <= margin else int(math.copysign(1, gain)))
    return out


def gcpo(
    rewards: Sequence[float],
    groups: Sequence[int],
    correct: Sequence[bool],
    lengths: Sequence[int],
    habit: Sequence[float],
    longest: float,
    weight: float = 0.5,
    margin: float = 0.0,
    length_weight: float = 0.5,
) -> list[float]:
    sign = contrast(groups, correct, habit, margin)
    return [
        float(rewards[i])
        + (weight * sign[i] if habit[i] > 0.5 else 0.0)
        + length_weight * min(float(lengths[i]) / longest, 1.0)
        for i in range(len(rewards))
    ]
