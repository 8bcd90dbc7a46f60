"""NGRPO (arXiv:2509.18851): group statistics with virtual rollouts of the highest reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members, std


def virtual_max_norm(
    rewards: Sequence[float],
    groups: Sequence[int],
    reward_max: float = 1.0,
    count: int = 1,
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> list[float]:
    out = []
    for i in range(len(rewards)):
        extended = [float(rewards[j]) for j in members(groups, i)] + [reward_max] * count
        if all(r == extended[0] for r in extended):
            out.append(0.0)
            continue
        a = float(rewards[i]) - math.fsum(extended) / len(extended)
        out.append(a / (std(extended, ddof) + eps) if scale == "std" else a)
    return out


def keep_unless_all_correct(correct: Sequence[bool], groups: Sequence[int]) -> list[float]:
    return [float(not all(correct[j] for j in members(groups, i))) for i in range(len(correct))]
