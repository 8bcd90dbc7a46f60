"""Gaussian GRPO (arXiv:2604.08539): rewards become quantiles of N(0,1) by rank, ties the mean of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from oracles.group_norm import members


def rank_normal(rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    out = []
    for i in range(len(rewards)):
        peers = sorted(float(rewards[j]) for j in members(groups, i))
        n = len(peers)
        mine = [NormalDist().inv_cdf((k + 0.5) / n) for k in range(n) if peers[k] == float(rewards[i])]
        out.append(0.0 if len(mine) == n else math.fsum(mine) / len(mine))
    return out
