"""CodeDPO's mutual ranking of programs and tests (arXiv:2410.05605), one group at a time."""

from __future__ import annotations

from collections.abc import Sequence


def ranking(passed: Sequence[Sequence[bool]], damping: float, rounds: int) -> tuple[list[float], list[float]]:
    """Scores of programs and of tests. passed[i][j]: program i passes test j."""
    s, t = [1.0] * len(passed), [1.0] * len(passed[0])
    for _ in range(rounds):
        new_s = [
            (1 - damping) * s[i] + damping * sum(t[j] for j in range(len(t)) if passed[i][j]) for i in range(len(s))
        ]
        new_t = [
            (1 - damping) * t[j] + damping * sum(s[i] for i in range(len(s)) if passed[i][j]) for j in range(len(t))
        ]
        s = [x / max(new_s) for x in new_s]
        t = [x / max(new_t) for x in new_t]
    return s, t
