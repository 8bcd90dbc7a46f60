"""SRPO (arXiv:2406.01660): the two squared losses of answers and of improvements on answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oracles.dpo import log_ratio, mean, members, sides


def srpo(
    logp: np.ndarray,
    ref: np.ndarray,
    rewards: Sequence[float],
    shown: Sequence[float],
    groups: Sequence[int],
    live: np.ndarray,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> dict[int, float]:
    """The loss of each group. shown: above 0 the preferred answer, below 0 the other, 0 nothing."""
    out = {}
    for g, rows in members(groups, live).items():
        best, worst = sides(rewards, rows)
        if not best:
            out[g] = 0.0
            continue
        rho: dict[str, float] = {}
        for name, side in (("w", best), ("l", worst)):
            for what, test in (("", 0), ("|w", 1), ("|l", -1)):
                chosen = [i for i in side if np.sign(shown[i]) == test]
                rho[name + what] = mean([log_ratio(logp[i], ref[i], live[i], "sum") for i in chosen])
        policy = (0.5 - beta / 2 * ((rho["w|l"] - rho["l|w"]) + (rho["w"] - rho["l"]))) ** 2
        revision = (0.5 - beta * (rho["w|l"] - rho["l|l"])) ** 2 / 2 + (0.5 + beta * (rho["l|w"] - rho["w|w"])) ** 2 / 2
        out[g] = (1 - alpha) * policy + alpha * revision
    return out
