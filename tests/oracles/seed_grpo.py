"""SEED-GRPO (arXiv:2505.12346), group by group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from oracles.group_norm import members


def factors(
    groups: Sequence[int], answers: Sequence[int], alpha: float = 0.5, form: str = "linear", gamma: float = 2.0
) -> list[float]:
    out = []
    for i in range(len(groups)):
        counts = Counter(int(answers[j]) for j in members(groups, i))
        n = sum(counts.values())
        entropy = -math.fsum(math.log(c / n) for c in counts.values()) / len(counts)
        x = alpha * entropy / math.log(n) if n > 1 else 0.0
        out.append({"linear": 1 - x, "exp": math.exp(-x), "focal": max(0.0, 1 - x) ** gamma}[form])
    return out
