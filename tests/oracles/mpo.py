"""Mixed preference optimization (arXiv:2411.10442): DPO, BCO and the likelihood of what is preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from oracles.dpo import log_ratio, log_sigmoid, mean, members, sides


def mpo(
    logp: np.ndarray,
    ref: np.ndarray,
    rewards: Sequence[float],
    groups: Sequence[int],
    live: np.ndarray,
    preference: float = 0.8,
    quality: float = 0.2,
    generation: float = 1.0,
    beta: float = 0.1,
    shift: float = 0.0,
) -> tuple[dict[int, float], list[float]]:
    """The loss of each group, and the implicit rewards of which `shift` is the mean later on."""
    out, seen = {}, []
    for g, rows in members(groups, live).items():
        best, worst = sides(rewards, rows)
        if not best:
            out[g] = 0.0
            continue
        reward = {i: beta * log_ratio(logp[i], ref[i], live[i], "sum") for i in rows}
        seen += [reward[i] for i in best + worst]
        margin = mean([reward[i] for i in best]) - mean([reward[i] for i in worst])
        good = mean([-log_sigmoid(reward[i] - shift) for i in best])
        bad = mean([-log_sigmoid(-(reward[i] - shift)) for i in worst])
        nll = mean([-math.fsum(float(x) for x in logp[i][live[i]]) / int(live[i].sum()) for i in best])
        out[g] = -preference * log_sigmoid(margin) + quality * (good + bad) + generation * nll
    return out, seen
