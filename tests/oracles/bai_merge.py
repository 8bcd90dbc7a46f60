"""Balanced Actor Initialization (arXiv:2509.00309): two linear merges, number by number."""

from __future__ import annotations

from collections.abc import Sequence


def balanced(
    instruct: Sequence[float], distilled: Sequence[float], pretrained: Sequence[float], first: float, second: float
) -> list[float]:
    out = []
    for a, b, c in zip(instruct, distilled, pretrained, strict=True):
        between = first * a + (1.0 - first) * b
        out.append(second * between + (1.0 - second) * c)
    return out
