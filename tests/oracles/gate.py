"""P-GRPO (arXiv:2508.05170) and gated reward accumulation (arXiv:2508.10548), from parts of the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence


def p_grpo(form: Sequence[float], outcome: Sequence[float], thought: Sequence[float]) -> list[float]:
    return [f + o + o * t for f, o, t in zip(form, outcome, thought, strict=True)]


def accumulated(high: Sequence[float], low: Sequence[Sequence[float]], delta: float) -> list[float]:
    return [h + math.fsum(steps) if h >= delta else h for h, steps in zip(high, low, strict=True)]
