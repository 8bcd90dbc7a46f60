"""LightningRL (arXiv:2603.13319): which prompts are kept, and the log-likelihood of right rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def kept(groups: Sequence[int], correct: Sequence[bool], speed: Sequence[float], spread: float = 0.01) -> list[float]:
    out = []
    for i in range(len(groups)):
        peers = members(groups, i)
        seen = [float(speed[j]) for j in peers if not math.isnan(speed[j])]
        somebody = any(bool(correct[j]) for j in peers)
        out.append(1.0 if somebody and seen and max(seen) - min(seen) >= spread else 0.0)
    return out


def positive_nll(
    logp: Sequence[Sequence[float]], mask: Sequence[Sequence[bool]], good: Sequence[Sequence[bool]], coef: float = 0.1
) -> tuple[list[list[float]], list[list[float]]]:
    """The value of each decision and its derivative by its own logp."""
    value, slope = [], []
    for row, live, chosen in zip(logp, mask, good, strict=True):
        value.append([-coef * float(x) if m and g else 0.0 for x, m, g in zip(row, live, chosen, strict=True)])
        slope.append([-coef if m and g else 0.0 for m, g in zip(live, chosen, strict=True)])
    return value, slope
