"""DAPO's dynamic sampling (arXiv:2503.14476): a group stays when not all of its members have the same metric."""

from __future__ import annotations

from collections.abc import Sequence

from oracles.group_norm import members


def dynamic_sampling(metric: Sequence[float], groups: Sequence[int]) -> list[float]:
    return [float(len({float(metric[j]) for j in members(groups, i)}) > 1) for i in range(len(metric))]
