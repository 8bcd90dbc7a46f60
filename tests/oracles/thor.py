"""THOR: episodes and calls made anew, in one clipped loss with a likelihood term (arXiv:2509.13761)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracles.group_norm import members, std


def advantages(
    rewards: Sequence[float], ran: Sequence[int], groups: Sequence[int], eps: float = 1e-4
) -> tuple[list[float], list[float]]:
    """What each rollout earned, and how far that is from its group."""
    earned = [float(r) if made < 0 else (1.0 if made == 1 else 0.0) for r, made in zip(rewards, ran, strict=True)]
    out = []
    for i, r in enumerate(earned):
        peers = [earned[j] for j in members(groups, i)]
        mean = math.fsum(peers) / len(peers)
        out.append(0.0 if min(peers) == max(peers) else (r - mean) / (std(peers, 1) + eps))
    return earned, out


def loss(
    t: dict[str, Any], *, weight: float = 1.0, alpha: float = 0.01, low: float = 0.2, high: float = 0.2
) -> tuple[float, np.ndarray]:
    """The loss over both kinds of groups and its derivative by every log-prob."""
    _, a = advantages(t["rewards"], t["ran"], t["groups"])
    weights = [weight if made >= 0 else 1.0 for made in t["ran"]]
    live = [(i, k) for i in range(len(a)) for k in range(t["mask"].shape[1]) if t["mask"][i, k] and weights[i] != 0]
    value, slope = 0.0, np.zeros(t["mask"].shape)
    for i, k in live:
        difference = float(t["logp"][i, k] - t["logp_old"][i, k])
        r = math.exp(max(-20.0, min(20.0, difference)))
        inside = min(max(r, 1 - low), 1 + high)
        c = weights[i] / len(live)
        value -= c * min(r * a[i], inside * a[i])
        if r * a[i] <= inside * a[i] and abs(difference) <= 20:  # the ratio itself is the smaller
            slope[i, k] -= c * a[i] * r
        if a[i] > 0:
            value -= c * alpha * float(t["logp"][i, k])
            slope[i, k] -= c * alpha
    return value, slope


def likelihood(logp: Sequence[Sequence[float]], a: Sequence[Sequence[float]], alpha: float = 0.01) -> float:
    """The released code's term: alpha times the mean of -logp over the decisions with a positive advantage alone."""
    good = [-x for row, own in zip(logp, a, strict=True) for x, y in zip(row, own, strict=True) if y > 0]
    return alpha * math.fsum(good) / len(good) if good else 0.0
