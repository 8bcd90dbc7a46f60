"""MC-GRPO (arXiv:2601.22582): distance to the group's median, and the rollout that is the median."""

from __future__ import annotations

from collections.abc import Sequence

from oracles.group_norm import members, std


def lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def median_norm(
    rewards: Sequence[float], groups: Sequence[int], scale: str = "mad", ddof: int = 1, eps: float = 1e-3
) -> list[float]:
    out = []
    for i in range(len(rewards)):
        peers = [float(rewards[j]) for j in members(groups, i)]
        middle = lower_median(peers)
        spread = {"mad": lower_median([abs(p - middle) for p in peers]), "std": std(peers, ddof), "none": None}[scale]
        distance = float(rewards[i]) - middle
        out.append(distance if spread is None else distance / (spread + eps))
    return out


def pivots(rewards: Sequence[float], groups: Sequence[int]) -> list[bool]:
    """True for the first rollout of each group whose reward is the median."""
    out = [False] * len(rewards)
    for group in set(int(g) for g in groups):
        rows = [i for i in range(len(rewards)) if groups[i] == group]
        middle = lower_median([float(rewards[i]) for i in rows])
        out[next(i for i in rows if rewards[i] == middle)] = True
    return out
