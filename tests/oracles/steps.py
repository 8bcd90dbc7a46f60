"""What step-level oracles share: the decisions of a row, and how many steps it has."""

from __future__ import annotations

from typing import Any


def decisions(mask: Any, i: int) -> list[int]:
    return [t for t in range(mask.shape[1]) if mask[i, t]]


def steps(turn: Any, mask: Any, i: int) -> int:
    """The number of steps of row i, which are numbered from 0."""
    return max([int(turn[i, t]) for t in decisions(mask, i)], default=-1) + 1
