"""GHPO's hints by loops: how long each group's is, from the verdicts it would have at each length."""

from __future__ import annotations

from collections.abc import Sequence


def share_of(verdicts: Sequence[Sequence[bool]], shares: Sequence[float]) -> float:
    """`verdicts[0]` are a group's without a hint, `verdicts[k]` with the k-th."""
    told = 0.0
    for before, share in zip(verdicts, shares, strict=False):
        if sum(before) > 0:
            return told
        told = share
    return told


def hint(solution: str, share: float) -> str:
    out = ""
    for place, character in enumerate(solution):
        if place < round(share * len(solution)):
            out += character
    return out
