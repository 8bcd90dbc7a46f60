"""BranchGRPO in plain float64 loops: a tree given by the parent of every node, or a table of paths that fork."""

from __future__ import annotations

import math


def tree(parents, leaf_rewards, eps=1e-8):
    """Reward and advantage of every node. Nodes come after their parent; leaves take the rewards in their order."""
    count = len(parents)
    children = [[c for c in range(count) if parents[c] == n] for n in range(count)]
    depth = [0] * count
    for n in range(1, count):
        depth[n] = depth[parents[n]] + 1
    given = iter(leaf_rewards)
    own = [None if children[n] else next(given) for n in range(count)]

    def below(n):
        return [own[n]] if not children[n] else [r for c in children[n] for r in below(c)]

    rewards = [sum(below(n)) / len(below(n)) for n in range(count)]
    return rewards, [
        normalised(rewards[n], [rewards[m] for m in range(count) if depth[m] == depth[n]], 1, eps) for n in range(count)
    ]


def normalised(value, values, ddof, eps):
    if len(values) <= ddof or max(values) - min(values) < 1e-12:
        return 0.0
    mean = sum(values) / len(values)
    return (value - mean) / (math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof)) + eps)


def took(i, t, parent, branch):
    """Who took decision t of rollout i first."""
    while t < branch[i] and parent[i] != i:
        i = parent[i]
    return i


def depth_norm(rewards, groups, parent, branch, mask, ddof=1, eps=1e-8):
    out = [[0.0] * len(row) for row in mask]
    for t in range(len(mask[0])):
        for g in set(groups):
            nodes = {}
            for i in range(len(rewards)):
                if groups[i] == g and mask[i][t]:
                    nodes.setdefault(took(i, t, parent, branch), []).append(rewards[i])
            values = {k: sum(v) / len(v) for k, v in nodes.items()}
            for i in range(len(rewards)):
                if groups[i] == g and mask[i][t]:
                    value = values[took(i, t, parent, branch)]
                    out[i][t] = normalised(value, list(values.values()), ddof, eps)
    return out


def pruned(step, first, size, every, lowest):
    """The places without gradient: one shallower every so often, and no shallower than the last split."""
    places = list(range(first, first + size))
    for _ in range(step // every):
        if places[0] > lowest:
            places = [p - 1 for p in places]
    return places
