"""GRPO-CARE (arXiv:2506.16141): the bonus for right answers that follow from their reasoning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def consistency(
    rewards: Sequence[float],
    groups: Sequence[int],
    accuracy: Sequence[float],
    answers: Sequence[Sequence[float]],
    coef: float = 0.5,
    margin: float = 0.01,
    cap: float = 0.95,
) -> list[float]:
    """`answers`: the reference's log-probabilities of each rollout's answer; none where there is no answer."""
    sure = [min(math.exp(math.fsum(a) / len(a)), cap) if len(a) else None for a in answers]
    out = []
    for i in range(len(rewards)):
        peers = members(groups, i)
        marks = [float(accuracy[j]) for j in peers if not math.isnan(accuracy[j])]
        high = [
            j for j in peers
            if sure[j] is not None and accuracy[j] > 0.1 and accuracy[j] >= math.fsum(marks) / len(marks)
        ]  # fmt: skip
        bonus = 0.0
        if i in high and sure[i] >= math.fsum(sure[j] for j in high) / len(high) - margin:
            bonus = coef * float(accuracy[i])
        out.append(float(rewards[i]) + bonus)
    return out
