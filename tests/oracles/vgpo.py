"""VGPO in plain loops: returns of foreseen rewards, their weight in time, a relative and an absolute part."""

from __future__ import annotations

import math


def returns(rewards, gamma):
    """rewards of one rollout by step -> Q of each."""
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def omega(q):
    if not q or not (all(v > 0 for v in q) or all(v < 0 for v in q)):
        return [1.0] * len(q)
    mean = sum(q) / len(q)
    return [v / mean for v in q]


def advantages(rewards, previews, groups, mask, gamma=0.9, absolute=0.1, anchored=None, eps=1e-4):
    """The advantage of every decision. ddof 0; [B][T], 0 where the mask is off."""
    places = [[t for t in range(len(m)) if m[t]] for m in mask]
    q = []
    for i, mine in enumerate(places):
        given = [previews[i][t] for t in mine]
        if given:
            given[-1] = rewards[i]
        q.append(dict(zip(mine, returns(given, gamma), strict=True)))
    out = [[0.0] * len(m) for m in mask]
    for i, mine in enumerate(places):
        weights = omega(list(q[i].values()))
        for number, t in enumerate(mine):
            peers = [q[j][t] for j in range(len(mask)) if groups[j] == groups[i] and mask[j][t]]
            mean = sum(peers) / len(peers)
            std = math.sqrt(sum((p - mean) ** 2 for p in peers) / len(peers))
            part = 0.0 if max(peers) == min(peers) else (q[i][t] - mean) / (std + eps)
            acts = anchored is None or number < anchored
            out[i][t] = weights[number] * (part + (absolute * q[i][t] if acts else 0.0))
    return out
