"""REINFORCE++ (arXiv:2501.03262): returns to go, whitened over every decision of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracles.group_norm import group_norm


def returns_to_go(token_rewards: Any, mask: Any, gamma: float = 1.0) -> np.ndarray:
    """G_t = r_t + gamma G_{next decision}; 0 where masked."""
    out = np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        decisions = [t for t in range(mask.shape[1]) if mask[i, t]]
        for place, t in enumerate(decisions):
            out[i, t] = math.fsum(gamma**k * float(token_rewards[i, s]) for k, s in enumerate(decisions[place:]))
    return out


def whiten(values: np.ndarray, mask: Any, ddof: int = 1, eps: float = 1e-8) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    valid = [float(values[i, t]) for i, t in zip(rows, columns, strict=True)]
    out = np.zeros(values.shape)
    if len(valid) <= ddof or all(v == valid[0] for v in valid):
        return out
    mean = math.fsum(valid) / len(valid)
    variance = math.fsum((v - mean) ** 2 for v in valid) / (len(valid) - ddof)
    for i, t in zip(rows, columns, strict=True):
        out[i, t] = (values[i, t] - mean) / math.sqrt(variance + eps)
    return out


def whitened_return(
    token_rewards: Any,
    mask: Any,
    groups: Sequence[int],
    rewards: Sequence[float],
    gamma: float = 1.0,
    group_baseline: bool = False,
    ddof: int = 1,
    eps: float = 1e-8,
) -> np.ndarray:
    if group_baseline:
        centred = group_norm(rewards, groups, scale="none")
        values = np.array([[centred[i]] * mask.shape[1] for i in range(len(rewards))])
    else:
        values = returns_to_go(token_rewards, mask, gamma)
    return whiten(values, mask, ddof, eps)
