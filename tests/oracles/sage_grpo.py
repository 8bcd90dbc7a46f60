"""SAGE-GRPO in plain loops: sizes of gradients by step, their equaliser, and the two KLs."""

from __future__ import annotations

import math


def gradient_scale(sigma, after, noise):
    """|d mean / d v| / std of a step of its SDE."""
    variance = noise**2 * (-(sigma - after) + math.log((1 - after) / (1 - min(sigma, 1 - 3e-3))))
    return abs((after - sigma) - 0.5 * variance * (1 - sigma) / sigma) / math.sqrt(variance)


def equaliser(scales):
    """median over scales, the lower of the two in the middle; one factor a scale."""
    middle = sorted(scales)[(len(scales) - 1) // 2]
    return [middle / s for s in scales]


def equalised(gain, std, mask, weights):
    """Weights of decisions [B][T]."""
    live = [(i, t) for i, row in enumerate(mask) for t in range(len(row)) if row[t] and weights[i] != 0]
    out = [[0.0] * len(row) for row in mask]
    if live:
        factors = equaliser([gain[i][t] / std[i][t] for i, t in live])
        for (i, t), f in zip(live, factors, strict=True):
            out[i][t] = weights[i] * f
    return out


def dual_kl(anchor_kl, logp, logp_old, of_anchor=1.0, of_steps=0.1):
    """Means over decisions, weighed and added."""
    steps = sum(o - n for n, o in zip(logp, logp_old, strict=True)) / len(logp)
    return of_anchor * sum(anchor_kl) / len(anchor_kl) + of_steps * steps
