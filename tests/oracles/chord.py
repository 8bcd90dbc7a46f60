"""CHORD (arXiv:2508.11408): GRPO's loss on rollouts and a weighted likelihood of demonstrations, mixed by mu."""

from __future__ import annotations

import math
from collections.abc import Sequence


def imitation(
    logp: Sequence[Sequence[float]], mask: Sequence[Sequence[bool]], weight: str = "uncertainty"
) -> tuple[list[list[float]], list[list[float]]]:
    """The value of each token and its derivative by its own logp, the weight held fixed."""
    value, slope = [], []
    for row, live in zip(logp, mask, strict=True):
        values, slopes = [], []
        for x, on in zip(row, live, strict=True):
            if not on:
                values.append(0.0)
                slopes.append(0.0)
                continue
            p = math.exp(x)
            w = {"none": 1.0, "uncertainty": p * (1.0 - p), "probability": p}[weight]
            values.append(-w * x)
            slopes.append(-w)
        value.append(values)
        slope.append(slopes)
    return value, slope


def loss(
    surrogate: float, logp: Sequence[Sequence[float]], mask: Sequence[Sequence[bool]], mu: float, weight: str
) -> float:
    """(1 - mu) times the loss of the rollouts and mu times the tokens' mean."""
    value, _ = imitation(logp, mask, weight)
    tokens = sum(bool(on) for live in mask for on in live)
    return (1.0 - mu) * surrogate + (mu * sum(map(sum, value)) / tokens if tokens else 0.0)


def mu(step: float, warmup: int, decay: int, peak: float, valley: float) -> float:
    if step < warmup:
        return peak * step / warmup
    x = min((step - warmup) / decay, 1.0)
    return valley + (peak - valley) * 0.5 * (1.0 + math.cos(math.pi * x))
