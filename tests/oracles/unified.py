"""UniRL (2505.23380) and Unified-GRPO (2509.09666) with plain loops: whose reward is what, and who learns when."""

from __future__ import annotations

from typing import Any

import numpy as np


def mutual(
    t: dict[str, Any], side: str, understood: str, fits: str | None, at: float = 1.0, weight: float = 1.0
) -> np.ndarray:
    c = t["components"]
    out = [float(r) for r in t["rewards"]]
    for i in range(len(out)):
        generates = c[side][i] > 0
        fitting = True if fits is None else bool(c[fits][i] >= at)
        if generates and fitting and not np.isnan(c[understood][i]):
            out[i] += weight * float(c[understood][i])
    return np.array(out)


def keeps(t: dict[str, Any], side: str, fits: str, at: float = 1.0) -> np.ndarray:
    c = t["components"]
    return np.array([1.0 if c[side][i] > 0 or c[fits][i] >= at else 0.0 for i in range(len(c[side]))])


def turns(t: dict[str, Any], side: str, every: int, together: int, step: int) -> np.ndarray:
    """Understanding, generation, understanding … after the steps in which both learn."""
    plan = ["both"] * together
    while every > 0 and len(plan) <= step:
        plan += ["understanding"] * every + ["generation"] * every
    now = plan[step] if every > 0 else "both"
    out = np.array(t["weights"], dtype=np.float64)
    for i in range(len(out)):
        mine = "generation" if t["components"][side][i] > 0 else "understanding"
        if now not in ("both", mine):
            out[i] = 0.0
    return out


def own_norm(t: dict[str, Any], ddof: int = 1, eps: float = 1e-4) -> np.ndarray:
    groups, episode, rewards = t["groups"].tolist(), t["episode"].tolist(), t["rewards"].tolist()
    n = len(rewards)

    def calls(i: int) -> list[int]:
        return [j for j in range(n) if groups[j] == groups[i] and episode[j] == episode[i]]

    out = np.zeros(n)
    for i in range(n):
        own = calls(i)
        if len(own) == 1:
            own = [j for j in range(n) if groups[j] == groups[i] and len(calls(j)) == 1]
        values = [float(rewards[j]) for j in own]
        if max(values) > min(values):
            out[i] = (rewards[i] - np.mean(values)) / (np.std(values, ddof=ddof) + eps)
    return out
