"""Co-GRPO by loops: what an action of the schedule means, its density, and the joint ratio of both policies."""

from __future__ import annotations

import math
from collections.abc import Sequence


def density(action: Sequence[float], mean: Sequence[float], std: float) -> float:
    out = 0.0
    for x, m in zip(action, mean, strict=True):
        out += math.log(math.exp(-((x - m) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi)))
    return out


def temperature(action: Sequence[float]) -> float:
    return min(max(math.exp(action[0]), 0.05), 20.0)


def places(action: Sequence[float], left: int, steps: int) -> int:
    """How many of the places that are left are unmasked with so many steps to go."""
    if steps == 1:
        return left
    odds = (1 / steps) / (1 - 1 / steps) * math.exp(action[1])
    share = odds / (1 + odds)
    return min(max(math.floor(share * left + 0.5), 1), left)


def loss(
    token_changes: Sequence[Sequence[float]], schedule_changes: Sequence[float], rewards: Sequence[float], eps: float
) -> float:
    """One group and one step: the mean over rollouts of the clipped joint ratio, a mean over tokens times the
    schedule's. Advantages by the sample standard deviation.
    """
    n = len(rewards)
    mean = sum(rewards) / n
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
    total = 0.0
    for tokens, schedule, reward in zip(token_changes, schedule_changes, rewards, strict=True):
        a = (reward - mean) / (std + 1e-4)
        ratio = math.exp(sum(tokens) / len(tokens) + schedule)
        total += min(ratio * a, min(max(ratio, 1 - eps), 1 + eps) * a)
    return -total / n
