"""The soft-maximum baseline of online policy mirror descent: tau log( 1/n sum exp(R/tau) )."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members


def log_mean_exp(rewards: Sequence[float], groups: Sequence[int], tau: float = 1.0) -> list[float]:
    out = []
    for i in range(len(rewards)):
        peers = [float(rewards[j]) for j in members(groups, i)]
        top = max(peers)  # exp of a difference never overflows
        total = math.fsum(math.exp((p - top) / tau) for p in peers)
        out.append(float(rewards[i]) - (top + tau * math.log(total / len(peers))))
    return out
