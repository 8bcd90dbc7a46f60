"""Losses on noisy copies of finished samples in plain loops: DiffusionNFT, AWM, GDRO, and Sol-RL's choice."""

from __future__ import annotations

import math


def square(u, target):
    return sum((a - b) ** 2 for a, b in zip(u, target, strict=True)) / len(u)


def contrastive(v, v_old, target, level, advantage, beta=1.0, bound=5.0, by="rms"):
    """DiffusionNFT's loss of one draw; `by` "size" divides by the mean size of the error, as its code does."""
    share = min(max(advantage / (2 * bound) + 0.5, 0.0), 1.0)
    total = 0.0
    for sign, weight in ((1, share), (-1, 1 - share)):
        u = [o + sign * beta * (a - o) for a, o in zip(v, v_old, strict=True)]
        error = square(u, target)
        size = sum(abs(a - b) for a, b in zip(u, target, strict=True)) / len(u)
        divisor = max(level * (math.sqrt(error) if by == "rms" else size), 1e-5)
        total += weight * level**2 * error / divisor
    return bound * total / beta


def ranking(s, rewards, temperature, anchor=0.0, errors=None):
    """GDRO's loss of one group."""
    order = sorted(range(len(s)), key=lambda i: (-rewards[i], i))
    total = 0.0
    for i in range(len(order) - 1):
        rest = order[i:]
        top = max(s[m] for m in rest)
        total += top + math.log(sum(math.exp(s[m] - top) for m in rest))
        if temperature == 0:
            total -= s[order[i]]
            continue
        highest = max(rewards[m] for m in rest)
        q = [math.exp((rewards[m] - highest) / temperature) for m in rest]
        total -= sum(w / sum(q) * s[m] for w, m in zip(q, rest, strict=True))
    return total + (anchor * errors[order[0]] if errors and order else 0.0)


def contrast(rewards, each):
    """The indices of the `each` lowest and `each` highest."""
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    return sorted(order[:each] + order[len(order) - each :])
