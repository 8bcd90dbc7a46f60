"""Graph-GRPO's edge advantages (arXiv:2603.02701), with plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np


def edges(advantages: np.ndarray, groups: np.ndarray, chosen: Any) -> np.ndarray:
    """[B,T] from [B,T]: of each edge that a graph has, the mean over the graphs of its group that have it."""
    out = np.zeros(chosen.shape)
    for i in range(len(chosen)):
        for e in range(chosen.shape[1]):
            if chosen[i, e]:
                having = [j for j in range(len(chosen)) if groups[j] == groups[i] and chosen[j, e]]
                out[i, e] = sum(float(advantages[j, e]) for j in having) / len(having)
    return out
