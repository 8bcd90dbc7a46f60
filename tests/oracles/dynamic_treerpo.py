"""Dynamic-TreeRPO in plain loops: noise by depth, the clip range, the surrogate, and the target of LayerTuning-RL."""

from __future__ import annotations

import math


def noise_at(noise, rise, k, depth):
    return noise * (1 + rise * k / depth)


def bound(advantage, sensitivity, low, high):
    return low + (high - low) / (1 + math.exp(-sensitivity * advantage))


def surrogate(ratio, advantage, sensitivity, low, high):
    eps = bound(advantage, sensitivity, low, high)
    clipped = min(max(ratio, 1 - eps), 1 + eps)
    return min(ratio * advantage, clipped * advantage)


def best_rollout(rewards, groups, group):
    """The first of those with the highest reward in a group."""
    best = None
    for i, r in enumerate(rewards):
        if groups[i] == group and (best is None or r > rewards[best]):
            best = i
    return best


def pull(advantage, sensitivity):
    """The weight of the target: what the clip's sigmoid leaves, so that the mean decision has 1."""
    return 2 - 2 / (1 + math.exp(-sensitivity * advantage))


def target(gap, rewards, groups, mask, advantages, coef, above=None, sensitivity=0.0):
    """coef times the weighted gap of each decision, 0 in groups whose best is not above the threshold."""
    out = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        top = rewards[best_rollout(rewards, groups, groups[i])]
        for t, on in enumerate(row):
            if on and (above is None or top > above):
                own = advantages[i][t] if isinstance(advantages[i], list) else advantages[i]
                out[i][t] = coef * pull(own, sensitivity) * gap[i][t]
    return out
