"""XRPO's novelty sharpening (arXiv:2510.06672), one rollout at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from oracles.group_norm import members


def mean_logp(logp: Any, mask: Any, i: int) -> float:
    taken = [float(logp[i, t]) for t in range(mask.shape[1]) if mask[i, t]]
    return math.fsum(taken) / len(taken) if taken else 0.0


def novelty_sharpening(
    advantages: Sequence[float],
    groups: Sequence[int],
    logp: Any,
    mask: Any,
    correct: Sequence[bool] | None = None,
    strength: float = 1.0,
    cap: float = 1.0,
) -> list[float]:
    scores = [mean_logp(logp, mask, i) for i in range(len(groups))]
    out = []
    for i in range(len(groups)):
        a = float(advantages[i])
        peers = members(groups, i)
        eta = math.exp(scores[i] - math.fsum(scores[j] for j in peers) / len(peers))
        right = a > 0 and (correct is None or bool(correct[i]))
        out.append(a + min(max(strength * (1 - eta), 0.0), cap * a) if right else a)
    return out
