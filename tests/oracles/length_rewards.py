"""Length in the reward of well answered prompts: GRPO-lambda (arXiv:2505.18086) and L-GRPO (arXiv:2505.21178)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members, std


def grpo_lambda(
    rewards: Sequence[float],
    groups: Sequence[int],
    correct: Sequence[bool],
    lengths: Sequence[int],
    share: float = 0.2,
    alpha: float = 0.2,
) -> list[float]:
    seen = list(dict.fromkeys(int(g) for g in groups))  # in the order of their first rows
    rate = {
        g: sum(bool(c) for c, h in zip(correct, groups, strict=True) if h == g) / list(groups).count(g) for g in seen
    }
    number = math.ceil(share * len(seen) - 1e-9)
    best = sorted(seen, key=lambda g: -rate[g])[:number]
    out = []
    for i in range(len(rewards)):
        r = float(rewards[i])
        if int(groups[i]) in best and correct[i]:
            of_right = [float(lengths[j]) for j in members(groups, i) if correct[j]]
            spread = std(of_right, 0)
            z = (float(lengths[i]) - math.fsum(of_right) / len(of_right)) / spread if spread > 0 else 0.0
            r *= 1 - alpha / (1 + math.exp(-z))
        out.append(r)
    return out


def all_correct_length(
    rewards: Sequence[float], groups: Sequence[int], correct: Sequence[bool], lengths: Sequence[int], longest: int
) -> list[float]:
    out = []
    for i in range(len(rewards)):
        mastered = all(correct[j] for j in members(groups, i))
        out.append(float(rewards[i]) * (1 - min(lengths[i] / longest, 1.0)) if mastered else float(rewards[i]))
    return out
