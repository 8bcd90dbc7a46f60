"""S-GRPO (arXiv:2505.07686): what the right answers along one line of thought earn."""

from __future__ import annotations

from collections.abc import Sequence


def decaying(correct: Sequence[bool], decay: float = 0.5) -> list[float]:
    """Answers in order of exit: each right one earns `decay` times what the one before it earned."""
    out, worth = [], 1.0
    for right in correct:
        out.append(worth if right else 0.0)
        worth *= decay if right else 1.0
    return out


def serial_decay(
    correct: Sequence[bool], groups: Sequence[int], branch: Sequence[int], decay: float = 0.5
) -> list[float]:
    out = [0.0] * len(correct)
    for group in {int(g) for g in groups}:
        rows = [i for i in range(len(correct)) if groups[i] == group]
        rows.sort(key=lambda i: (branch[i] < 0, branch[i], i))
        for i, worth in zip(rows, decaying([bool(correct[i]) for i in rows], decay), strict=True):
            out[i] = worth
    return out
