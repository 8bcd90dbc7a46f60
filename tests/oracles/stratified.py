"""Stratified GRPO (arXiv:2510.06214), rollout by rollout."""

from __future__ import annotations

from collections.abc import Sequence

from oracles.group_norm import group_norm


def stratified(
    rewards: Sequence[float],
    groups: Sequence[int],
    strata: Sequence[float],
    alpha: float = 0.8,
    cap: float | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
) -> list[float]:
    labels = [s if cap is None else min(s, cap) for s in strata]
    names: dict[tuple[int, float], int] = {}
    both = [names.setdefault((int(g), float(s)), len(names)) for g, s in zip(groups, labels, strict=True)]
    within = group_norm(rewards, both, "std", ddof, eps)
    whole = group_norm(rewards, groups, "std", ddof, eps)
    return [alpha * a + (1 - alpha) * b for a, b in zip(within, whole, strict=True)]
