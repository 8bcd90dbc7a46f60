"""Rank-GRPO (arXiv:2510.20150): rewards of items by suffix DCG, advantages by rank, ratios by item."""

from __future__ import annotations

from math import exp, log2
from typing import Any

import numpy as np

from oracles.group_norm import std
from oracles.steps import decisions, steps


def suffix_dcg(hits: list[float]) -> list[float]:
    return [sum(hits[j] / log2(j + 2) for j in range(k, len(hits))) for k in range(len(hits))]


def rank_norm(
    step_rewards: Any,
    turn: Any,
    mask: Any,
    truncated: Any,
    groups: Any,
    gain: str = "suffix_dcg",
    items: int | None = None,
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-4,
    count_bonus: float = 0.0,
) -> np.ndarray:
    rows, ranks = range(len(mask)), step_rewards.shape[1]
    emitted = []
    for i in rows:
        n = steps(turn, mask, i)
        emitted.append(n if items is None else min(n, items))
    rewards = []
    for i in rows:
        hits = [float(step_rewards[i, k]) if k < emitted[i] else 0.0 for k in range(ranks)]
        rewards.append(suffix_dcg(hits) if gain == "suffix_dcg" else hits)
    out = np.zeros(mask.shape)
    for i in rows:
        mine = decisions(mask, i)
        for t in mine:
            k = int(turn[i, t])
            if t == mine[-1] and not truncated[i]:
                n = steps(turn, mask, i)
                out[i, t] = 0.0 if items is None or n > items else count_bonus if n == items else -count_bonus
                continue
            if k >= emitted[i]:
                out[i, t] = -count_bonus
            if k < 0 or k >= emitted[i]:
                continue
            peers = [rewards[j][k] for j in rows if groups[j] == groups[i]]
            if max(peers) == min(peers):
                continue
            centred = rewards[i][k] - sum(peers) / len(peers)
            out[i, t] = centred if scale == "none" else centred / (std(peers, ddof) + eps)
    return out


def turn_ratio(logp: Any, logp_old: Any, turn: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] the ratio of each decision, and [B,T,T] the derivative of the ratio at t by logp at u."""
    value, slope = np.ones(mask.shape), np.zeros((*mask.shape, mask.shape[1]))
    for i in range(len(mask)):
        for t in decisions(mask, i):
            together = [u for u in decisions(mask, i) if turn[i, u] == turn[i, t]]
            mean = sum(float(logp[i, u] - logp_old[i, u]) for u in together) / len(together)
            value[i, t] = exp(min(max(mean, -20.0), 20.0))
            for u in together:
                slope[i, t, u] = value[i, t] / len(together) if abs(mean) < 20.0 else 0.0
    return value, slope
