"""DAPO's soft overlong punishment, equation 13 of arXiv:2503.14476."""

from __future__ import annotations


def soft_overlong(length: int, longest: int, cache: int, factor: float = 1.0) -> float:
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return factor * ((longest - cache) - length) / cache
    return -factor
