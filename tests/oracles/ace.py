"""ACE (arXiv:2602.21420): wrong rollouts pay a factor that grows with their log-ratio to the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def factor(c: float, alpha: float) -> float:
    return 1 + alpha * softplus(c)


def ace(
    advantages: Sequence[float],
    logp_old: Any,
    logp_ref: Any,
    mask: Any,
    correct: Sequence[bool] | None = None,
    alpha: float = 1.0,
    confidence: str = "mean",
) -> list[float]:
    out = []
    for i in range(len(advantages)):
        steps = [float(logp_old[i, t]) - float(logp_ref[i, t]) for t in range(mask.shape[1]) if mask[i, t]]
        c = math.fsum(steps) / (max(len(steps), 1) if confidence == "mean" else 1)
        a = float(advantages[i])
        wrong = a < 0 and (correct is None or not correct[i])
        out.append(a * factor(c, alpha) if wrong else a)
    return out
