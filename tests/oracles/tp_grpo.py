"""TP-GRPO (arXiv:2507.23317): thoughts, their values, and the advantage of each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def thoughts(marks: Sequence[bool], won: bool, blame: float) -> list[tuple[int, float]]:
    """Runs of equal marks: how many steps each has, and what it is worth."""
    runs: list[list[bool]] = []
    for mark in marks:
        if runs and runs[-1][-1] == mark:
            runs[-1].append(mark)
        else:
            runs.append([mark])
    return [(len(run), 1.0 if run[0] else -blame if won else -1.0) for run in runs]


def normalised(values: Sequence[float], ddof: int, eps: float) -> list[float]:
    n, mean = len(values), sum(values) / len(values)
    if max(values) == min(values):
        return [0.0] * n
    spread = (sum((v - mean) ** 2 for v in values) / (n - ddof)) ** 0.5 if n > ddof else 0.0
    return [(v - mean) / (spread + eps) for v in values]


def advantages(
    marks: Sequence[Sequence[bool]],
    won: Sequence[bool],
    rewards: Sequence[float],
    groups: Sequence[int],
    blame: float | None = None,
    ddof: int = 0,
    eps: float = 1e-6,
) -> tuple[list[float], list[np.ndarray]]:
    """Of each rollout its outcome's part, and of each of its steps the sum of both."""
    outcome: list[float] = [0.0] * len(won)
    steps: list[np.ndarray] = [np.zeros(0)] * len(won)
    for group in {int(g) for g in groups}:
        rows = [i for i in range(len(won)) if groups[i] == group]
        cost = sum(bool(won[i]) for i in rows) / len(rows) if blame is None else blame
        runs = {i: thoughts(marks[i], bool(won[i]), cost) for i in rows}
        pool = [value for i in rows for _, value in runs[i]]
        values = iter(normalised(pool, ddof, eps) if pool else [])
        for i, a in zip(rows, normalised([float(rewards[i]) for i in rows], ddof, eps), strict=True):
            outcome[i] = a
            steps[i] = np.array([a + v for n, v in ((n, next(values)) for n, _ in runs[i]) for _ in range(n)])
    return outcome, steps
