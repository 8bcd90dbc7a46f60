"""GDPO (arXiv:2601.05242): one z-score a reward and group, a weighted sum, and a z-score over the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oracles.group_norm import members, std


def gdpo(
    components: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    groups: Sequence[int],
    gates: Mapping[str, str] | None = None,
    gate_at: float = 1.0,
    whiten: bool = True,
    ddof: int = 1,
    eps: float = 1e-4,
) -> list[float]:
    table = {k: [float(x) for x in v] for k, v in components.items()}
    closed = {
        easy: [not table[hard][i] >= gate_at and not math.isnan(table[easy][i]) for i in range(len(groups))]
        for easy, hard in (gates or {}).items()
    }
    for easy, shut in closed.items():
        table[easy] = [0.0 if s else x for s, x in zip(shut, table[easy], strict=True)]
    total = []
    for i in range(len(groups)):
        s = 0.0
        for name, column in table.items():
            peers = [column[j] for j in members(groups, i) if not math.isnan(column[j])]
            if math.isnan(column[i]) or max(peers) == min(peers):
                continue
            s += weights[name] * (column[i] - math.fsum(peers) / len(peers)) / (std(peers, ddof) + eps)
        total.append(s)
    if not whiten or len(total) < 2:
        return total
    mean = math.fsum(total) / len(total)
    return [(s - mean) / (std(total, 1) + eps) for s in total]
