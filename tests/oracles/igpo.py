"""IGPO by loops: where pieces of a solution stand, who replaces whom, which given tokens teach, and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def canvas(
    tokens: Sequence[int], chunks: Sequence[tuple[int, int]], width: int, room: int, stretch: float
) -> list[int]:
    """Chunks of the tokens, the gaps before them stretched; -1 where the model writes."""
    factor = room / len(tokens) if len(tokens) else 1.0
    factor = 1.0 if factor < 1.0 else stretch if factor > stretch else factor
    out = [-1 for _ in range(width)]
    place, before = 0, 0
    for start, stop in chunks:
        place = place + math.floor((start - before) * factor)
        for k in range(start, stop):
            if place < room:
                out[place] = tokens[k]
            place += 1
        before = stop
    return out


def replaced(plain: Sequence[bool], inpainted: Sequence[bool], order: Sequence[int], most: int) -> list[int]:
    """For each slot of a group the rollout that stands there: -1 its own, else the number of the inpainted one."""
    slots = [-1] * len(plain)
    if any(plain):
        return slots
    used = 0
    for i in order:
        if inpainted[i] and used < most:
            slots[used] = i
            used += 1
    return slots


def teaches(given: Any, entropy: Any, live: Any, share: float) -> np.ndarray:
    """What was sampled, and of a row's given decisions the most uncertain."""
    out = np.array(live, dtype=bool)
    for i in range(len(given)):
        mine = [t for t in range(len(given[i])) if live[i][t] and given[i][t]]
        mine.sort(key=lambda t: (-entropy[i][t], t))
        keep = max(1, math.floor(share * len(mine) + 1e-9)) if mine else 0
        for t in mine[keep:]:
            out[i, t] = False
    return out


def loss(t: dict[str, Any], taught: np.ndarray, beta: float = 0.01, eps: float = 0.2) -> float:
    """A sequence ratio over what teaches, and k3, over the number of decisions that teach."""
    rows = len(t["rewards"])
    total = 0.0
    for i in range(rows):
        group = [t["rewards"][j] for j in range(rows) if t["groups"][j] == t["groups"][i]]
        a = t["rewards"][i] - sum(group) / len(group)
        places = [k for k in range(taught.shape[1]) if taught[i, k]]
        if not places:
            continue
        log = sum(t["logp"][i][k] - t["logp_old"][i][k] for k in places) / len(places)
        r = math.exp(min(max(log, -20.0), 20.0))
        gain = min(r * a, min(max(r, 1 - eps), 1 + eps) * a)
        for k in places:
            d = t["logp_ref"][i][k] - t["logp"][i][k]
            total += -gain + beta * (math.exp(min(d, 20.0)) - d - 1)  # as far as the term goes
    return total / max(int(taught.sum()), 1)
