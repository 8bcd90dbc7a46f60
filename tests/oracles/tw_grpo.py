"""TW-GRPO (arXiv:2505.24718), position by position and token by token."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members


def spreads(log_probs: Any, groups: Any, mask: Any, bound: float = 11.0) -> list[list[float]]:
    """log_probs[i][t] is the whole distribution of rollout i at t, read where mask[i][t]."""
    vocabulary = len(log_probs[0][0])
    out = []
    for i in range(len(groups)):
        line = []
        for t in range(len(mask[i])):
            if not mask[i][t]:
                line.append(0.0)
                continue
            peers = members(groups, i)
            of = [log_probs[j][t] if mask[j][t] else [-math.log(vocabulary)] * vocabulary for j in peers]
            mean = [math.fsum(float(p[v]) for p in of) / len(of) for v in range(vocabulary)]
            total = 0.0
            for p in of:
                for v in range(vocabulary):
                    d = min(bound, max(-bound, mean[v] - float(p[v])))
                    total += math.exp(d) - d - 1
            line.append(total / len(of))
        out.append(line)
    return out


def weights(spread: Any, groups: Any, mask: Any, alpha: float = 1.7) -> list[list[float]]:
    out = []
    for i in range(len(groups)):
        own = [float(spread[j][t]) for j in members(groups, i) for t in range(len(mask[j])) if mask[j][t]]
        line = []
        for t in range(len(mask[i])):
            if not mask[i][t]:
                line.append(0.0)
            elif max(own) == min(own):
                line.append(1.0)
            else:
                line.append(1 + (alpha - 1) * (float(spread[i][t]) - min(own)) / (max(own) - min(own)))
        out.append(line)
    return out
