"""ScaleRL (arXiv:2510.13786): advantages of groups with a signal, and CISPO averaged by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def advantages(rewards: Sequence[float], groups: Sequence[int], eps: float = 1e-6) -> list[float]:
    """Centred in the group, over the spread of all centred rewards (the divisor is their number)."""
    centred = []
    for i in range(len(rewards)):
        own = [float(rewards[j]) for j in members(groups, i)]
        centred.append(0.0 if min(own) == max(own) else float(rewards[i]) - sum(own) / len(own))
    middle = sum(centred) / len(centred)
    std = math.sqrt(sum((c - middle) ** 2 for c in centred) / len(centred))
    return [c / (std + eps) for c in centred]


def loss(
    logp: Sequence[Sequence[float]],
    logp_old: Sequence[Sequence[float]],
    advantage: Sequence[float],
    groups: Sequence[int],
    mask: Sequence[Sequence[bool]],
    bound: float = 5.0,
) -> tuple[float, list[list[float]]]:
    """The value and its derivative by logp, the weight held fixed."""
    slope = [[0.0] * len(row) for row in logp]
    value, prompts = 0.0, []
    for g in dict.fromkeys(groups):
        rows = [i for i in range(len(groups)) if groups[i] == g]
        if any(mask[i][t] for i in rows for t in range(len(mask[i]))):
            prompts.append(rows)
    for rows in prompts:
        tokens = sum(bool(m) for i in rows for m in mask[i])
        for i in rows:
            for t in range(len(mask[i])):
                if mask[i][t]:
                    gap = min(max(logp[i][t] - logp_old[i][t], -20.0), 20.0)
                    weight = min(math.exp(gap), bound)
                    share = weight * advantage[i] / tokens / len(prompts)
                    value -= share * logp[i][t]
                    slope[i][t] = -share
    return value, slope
