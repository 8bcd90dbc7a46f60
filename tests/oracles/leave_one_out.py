"""RLOO's advantage (arXiv:2402.14740): minus the mean of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def leave_one_out(rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    out = []
    for i in range(len(rewards)):
        others = [float(rewards[j]) for j in members(groups, i) if j != i]
        out.append(float(rewards[i]) - math.fsum(others) / len(others) if others else 0.0)
    return out
