"""Corrections for a verifier with known rates of error (arXiv:2510.00915), one rollout at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rates(constant: float, given: Sequence[float] | None, n: int) -> list[float]:
    return [constant if given is None or math.isnan(float(given[i])) else float(given[i]) for i in range(n)]


def backward(
    rewards: Sequence[float], false_positive: Sequence[float], false_negative: Sequence[float], floor: float = 0.1
) -> list[float]:
    out = []
    for r, accepts, rejects in zip(rewards, false_positive, false_negative, strict=True):
        out.append((float(r) - accepts) / max(1 - accepts - rejects, floor))
    return out


def forward(verdicts: Sequence[float], false_negative: Sequence[float]) -> list[float]:
    """For verdicts of 0 and 1; in between, in proportion."""
    out = []
    for verdict, rejects in zip(verdicts, false_negative, strict=True):
        out.append(float(verdict) * rejects + (1 - float(verdict)) * (rejects - 1))
    return out
