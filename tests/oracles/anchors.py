"""GRAO (arXiv:2508.07750) by its objective, and DaGRPO's filter (2512.06337) pair by pair."""

from __future__ import annotations

import math
from typing import Any

from oracles.group_norm import members, std


def grao(
    means: Any, rewards: Any, groups: Any, anchor: Any, beta: float, lam: float, cap: float, eps: float = 1e-8
) -> tuple[float, list[float]]:
    """The loss of the mean log-prob of each row, all three terms as printed, and its derivative by each mean."""
    labels = sorted({int(g) for g in groups})
    loss, slope = 0.0, [0.0] * len(groups)
    for label in labels:
        rows = [i for i in range(len(groups)) if groups[i] == label]
        own = [i for i in rows if not anchor[i]]
        if not own:
            continue
        seen = [float(rewards[i]) for i in own]
        equal = all(x == seen[0] for x in seen)
        mu = seen[0] if equal else math.fsum(seen) / len(seen)
        sigma = 0.0 if equal else std(seen, 0)
        a = {i: (float(rewards[i]) - mu) / (sigma + eps) for i in rows}
        for y in (i for i in rows if anchor[i]):
            a[y] = max(-cap, min(cap, a[y]))
            loss -= beta * a[y] * means[y] / len(labels)
            slope[y] -= beta * a[y] / len(labels)
            for i in own:
                loss -= lam * a[i] * (means[i] - means[y]) / len(own) / len(labels)
                slope[i] -= lam * a[i] / len(own) / len(labels)
                slope[y] += lam * a[i] / len(own) / len(labels)
        for i in own:
            loss -= a[i] * means[i] / len(own) / len(labels)
            slope[i] -= a[i] / len(own) / len(labels)
    return loss, slope


def kept(rewards: Any, correct: Any, groups: Any, anchor: Any, margin: float) -> list[float]:
    out = []
    for i in range(len(groups)):
        solved = any(correct[j] and not anchor[j] for j in members(groups, i))
        rows = [j for j in members(groups, i) if not (anchor[j] and solved)]
        others = [j for j in rows if correct[j] != correct[i]]
        near = bool(others) and all(abs(float(rewards[i]) - float(rewards[j])) < margin for j in others)
        out.append(0.0 if near or i not in rows else 1.0)
    return out
