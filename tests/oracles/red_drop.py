"""RED-Drop (arXiv:2509.24203): the mean over a balanced part of each group, by loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def balanced_norm(rewards: Any, groups: Any, order: Any) -> tuple[np.ndarray, np.ndarray]:
    """[B] advantages and which rollouts stay. `order` [B]: of the bad rollouts those with the least number go first."""
    advantages, stays = np.zeros(len(rewards)), np.ones(len(rewards), dtype=bool)
    for g in set(map(int, groups)):
        members = [i for i in range(len(rewards)) if groups[i] == g]
        own = [float(rewards[i]) for i in members]
        if max(own) == min(own):
            continue
        mean = math.fsum(own) / len(own)
        bad = sorted((i for i in members if rewards[i] < mean), key=lambda i: order[i])
        good = len(members) - len(bad)
        for i in bad[: max(len(bad) - good, 0)]:
            stays[i] = False
        kept = [i for i in members if stays[i]]
        mean = math.fsum(float(rewards[i]) for i in kept) / len(kept)
        for i in kept:
            advantages[i] = float(rewards[i]) - mean
    return advantages, stays
