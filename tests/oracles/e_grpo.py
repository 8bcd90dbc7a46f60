"""Entity-aware rewards (arXiv:2510.24694)."""

from __future__ import annotations

from collections.abc import Sequence


def entity_match(
    rewards: Sequence[float],
    groups: Sequence[int],
    correct: Sequence[bool],
    truncated: Sequence[bool],
    found: Sequence[float],
    alpha: float = 0.3,
) -> list[float]:
    count = [max(float(f), 0.0) if f == f else 0.0 for f in found]
    out = []
    for i, group in enumerate(groups):
        most = max(c for c, g in zip(count, groups, strict=True) if g == group)
        wrong = alpha * count[i] / most if most > 0 else 0.0
        out.append(0.0 if truncated[i] else float(rewards[i]) if correct[i] else wrong)
    return out
