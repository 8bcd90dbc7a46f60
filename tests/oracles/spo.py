"""SPO (arXiv:2505.23564): cuts and segment advantages of a chain, and the edge advantages of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from oracles.steps import decisions


def cutpoints(p: Sequence[float], interval: int = 5, threshold: float = 0.9) -> list[int]:
    """c is the state after decision c, -1 the prompt: every `interval`-th decision below the threshold, less one."""
    return [t - 1 for t in range(len(p)) if p[t] < threshold][::interval]


def chain(n: int, cuts: Sequence[int], values: Sequence[float], score: float) -> list[float]:
    """Advantages of n decisions from the values at the cuts."""
    marks = [*zip(cuts, values, strict=True), (n - 1, score)]
    out = [0.0] * n
    for (left, v), (right, w) in pairwise(marks):
        for t in range(left + 1, right + 1):
            out[t] = w - v
    return out


def segment_value(rewards: Any, parent: Any, branch: Any, mask: Any) -> np.ndarray:
    out = np.zeros(mask.shape)
    for i in range(len(mask)):
        probes: dict[int, list[float]] = {}
        for j in range(len(mask)):
            if branch[j] >= 0 and parent[j] == i:
                probes.setdefault(int(branch[j]) - 1, []).append(float(rewards[j]))
        cuts = sorted(probes)
        values = [sum(probes[c]) / len(probes[c]) for c in cuts]
        gains = chain(mask.shape[1], cuts, values, float(rewards[i]))
        for t in decisions(mask, i):
            out[i, t] = gains[t]
    return out


Tree = float | list["Tree"]


def value(tree: Tree) -> float:
    """A leaf's reward, or the mean over the children."""
    return sum(value(child) for child in tree) / len(tree) if isinstance(tree, list) else tree


def edges(tree: Tree, scale: str = "none", eps: float = 1e-8) -> list[list[float]]:
    """For each leaf, in order, the advantages of the edges that lead to it."""
    if not isinstance(tree, list):
        return [[]]
    values = [value(child) for child in tree]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    out = []
    for child, v in zip(tree, values, strict=True):
        gain = v - mean if scale == "none" else (v - mean) / (spread + eps)
        out += [[gain, *rest] for rest in edges(child, scale, eps)]
    return out
