"""ScalingInter-RL's horizon (arXiv:2509.08755), by going through the stages."""

from __future__ import annotations

from collections.abc import Sequence


def horizon(done: int, rounds: Sequence[int], every: int) -> int:
    stage, left = 0, done
    while left >= every and stage < len(rounds) - 1:
        stage, left = stage + 1, left - every
    return rounds[stage]
