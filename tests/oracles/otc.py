"""OTC (arXiv:2504.14870): the tool-integrated reward, with the paper's f, and a record of each prompt's best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def efficiency(m: float, n: float, c: float) -> float:
    f = 0.0 if m == 0 and n == 0 else m if n == 0 else 2 * n * m / (m + n)
    if f == 0 and n == 0:
        return 1.0
    return math.cos(m * math.pi / (2 * m + c)) if n == 0 else math.sin(f * math.pi / (2 * n))


def otc(
    rewards: Sequence[float],
    groups: Sequence[int],
    correct: Sequence[bool],
    calls: Sequence[float],
    prompts: Sequence[int],
    best: dict[int, float] | None,
    alpha: float = 1.0,
    c: float = 1.0,
) -> list[float]:
    """`best` is the record of earlier steps, which is brought up to date; None keeps none."""
    of_group = []
    for i in range(len(rewards)):
        right = [float(calls[j]) for j in members(groups, i) if correct[j] and not math.isnan(calls[j])]
        of_group.append(min(right) if right else None)
    if best is not None:
        for p, n in zip(prompts, of_group, strict=True):
            if n is not None and p >= 0:
                best[int(p)] = min(n, best.get(int(p), n))
    out = []
    for i in range(len(rewards)):
        n = best.get(int(prompts[i])) if best is not None and prompts[i] >= 0 else of_group[i]
        r = 1.0 if n is None or math.isnan(calls[i]) else efficiency(float(calls[i]), n, c)
        out.append(alpha * r * float(rewards[i]))
    return out
