"""FlowSE-GRPO in plain loops: its step in its own time, its reward of several metrics, and SI-SDR."""

from __future__ import annotations

import math


def deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def rewards(metrics, weights, eps=1e-6):
    """metrics[m][i] -> R of each rollout; a metric that does not vary is left out."""
    out = [0.0] * len(metrics[0])
    for values, weight in zip(metrics, weights, strict=True):
        spread = deviation(values)
        if spread > eps:
            out = [r + weight * v / spread for r, v in zip(out, values, strict=True)]
    return out


def step(x, v, t, dt, a):
    """In time t from 0 (noise) to 1 (signal), v towards the signal."""
    g = a * math.sqrt((1 - t) / t)
    mean = [p + (q + g * g / (2 * (1 - t)) * (-p + t * q)) * dt for p, q in zip(x, v, strict=True)]
    return mean, g * math.sqrt(dt)


def si_sdr(sample, clean):
    n = len(clean)
    x = [s - sum(sample) / n for s in sample]
    y = [c - sum(clean) / n for c in clean]
    scale = sum(a * b for a, b in zip(x, y, strict=True)) / sum(b * b for b in y)
    signal = sum((scale * b) ** 2 for b in y)
    rest = sum((a - scale * b) ** 2 for a, b in zip(x, y, strict=True))
    return 10 * math.log10(signal / rest)
