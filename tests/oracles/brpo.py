"""BRPO (arXiv:2506.00103): signs against a reference of the group; groups of nearly one sign are left out."""

from __future__ import annotations

from collections.abc import Sequence


def signs(scores: Sequence[float], of_reference: Sequence[float], reference: int) -> list[float]:
    """scores[i] and of_reference[i]: what rollout i and the reference get when they are compared."""
    out = []
    for i in range(len(scores)):
        if i == reference:
            out.append(0.0)
        elif scores[i] > of_reference[i]:
            out.append(1.0)
        else:
            out.append(-1.0)
    return out


def kept(advantages: Sequence[float], groups: Sequence[int], most: float) -> list[float]:
    out = []
    for g in groups:
        mine = [a for a, other in zip(advantages, groups, strict=True) if other == g]
        out.append(1.0 if abs(sum(mine)) <= most * len(mine) else 0.0)
    return out
