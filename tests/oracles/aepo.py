"""AEPO (arXiv:2510.08141): which rollouts make the batch, and with what advantage."""

from __future__ import annotations

from collections.abc import Sequence


def batch(
    advantages: Sequence[float], heat: Sequence[float], share: float, threshold: float = 0.05
) -> list[tuple[int, float]]:
    """(row, advantage) of each rollout of the batch: tempered ones first, then the rest of the others."""
    tempered = [i for i, h in enumerate(heat) if h != 1 and advantages[i] > threshold]
    main = [i for i, h in enumerate(heat) if h == 1]
    n = min(int(len(main) * share + 1e-9), len(tempered))
    if any(h < 1 for h in heat):
        n //= 2
    return [(i, 1.0) for i in tempered[:n]] + [(i, float(advantages[i])) for i in main[n:]]
