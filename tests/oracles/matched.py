"""AdaCoT's reward (arXiv:2505.11896), CAD-RL's precision loss (2508.10118), and tokens in a match, by plain loops."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def trigger(reward: float, used: float, needed: float, miss: float, over: float) -> float:
    if math.isnan(used) or math.isnan(needed):
        return reward
    if needed > 0.5 and not used > 0.5:
        return reward - miss
    return reward - over if used > 0.5 and not needed > 0.5 else reward


def precision_loss(value: Any, matched: Any, mask: Any, weights: Any, omega: float) -> float:
    """Mean over the rollouts with weight of sum(omega l) / sum(omega)."""
    rows = []
    for i in range(len(mask)):
        own = [t for t in range(len(mask[i])) if mask[i][t]]
        if weights[i] and own:
            w = [omega if matched[i][t] else 1.0 for t in own]
            rows.append(weights[i] * math.fsum(x * value[i][t] for x, t in zip(w, own, strict=True)) / math.fsum(w))
    return float(np.mean(rows)) if rows else 0.0


def inside(texts: Sequence[str], pattern: str) -> list[bool]:
    """Character by character."""
    owner = [i for i, text in enumerate(texts) for _ in text]
    hit = {owner[c] for m in re.finditer(pattern, "".join(texts)) for c in range(m.start(), m.end())}
    return [i in hit for i in range(len(texts))]
