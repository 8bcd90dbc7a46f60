"""Unlikeliness reward (arXiv:2506.02355): positive rewards shrink with the rollout's likelihood rank in its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from oracles.group_norm import members


def unlikeliness(
    rewards: Sequence[float],
    groups: Sequence[int],
    logp: Any,
    mask: Any,
    beta: float = 0.25,
    likelihood: str = "mean",
) -> list[float]:
    scores = []
    for i in range(len(rewards)):
        taken = [float(logp[i, t]) for t in range(mask.shape[1]) if mask[i, t]]
        total = math.fsum(taken)
        scores.append(total / max(len(taken), 1) if likelihood == "mean" else total)
    out = []
    for i in range(len(rewards)):
        peers = [scores[j] for j in members(groups, i)]
        below, same = sum(s < scores[i] for s in peers), sum(s == scores[i] for s in peers)
        rank = below + (same - 1) / 2
        r = float(rewards[i])
        out.append(r * (1 - beta * rank / len(peers)) if r > 0 else r)
    return out
