"""D3S's first level (arXiv:2509.22115): the largest variance any subset of that size has, by trying all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import pvariance


def best_variance(values: Sequence[float], count: int) -> float:
    return max((pvariance(c) for c in combinations([float(v) for v in values], count)), default=0.0)
