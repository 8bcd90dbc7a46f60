"""Agent0-VL (arXiv:2511.19900): the return of an episode whose steps the policy judged itself."""

from __future__ import annotations

import math
from collections.abc import Sequence


def process(
    steps: Sequence[tuple[float, float, float]],
    lam: float = 0.3,
    gamma: float = 0.99,
    tau: float = 0.7,
    kappa: float = 5.0,
    cost: float = 0.05,
) -> tuple[float, int]:
    """steps: tool reward, score and confidence of each. The discounted sum, and the number of repairs."""
    total, repairs = 0.0, 0
    for t, (tool, score, confidence) in enumerate(steps, start=1):
        reward = lam * tool + score * confidence
        gate = 1.0 / (1.0 + math.exp(-kappa * (tau - confidence)))
        if confidence < tau:
            repairs += 1
            reward -= gate * cost
        total += gamma ** (t - 1) * reward
    return total, repairs


def whole(outcome: float, steps: Sequence[tuple[float, float, float]], alpha: float = 1.0, **settings: float) -> float:
    return alpha * outcome + process(steps, **settings)[0]
