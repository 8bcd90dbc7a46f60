"""RiskPO (arXiv:2510.00911): papers of a bundle, their mixed value at risk, and the tracking of quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.group_norm import members, std


def quantile(values: Sequence[float], level: float) -> float:
    """Linear between the two nearest."""
    ordered = sorted(values)
    at = level * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def riskpo(
    rewards: Sequence[float],
    groups: Sequence[int],
    quantiles: list[float],
    bundle: int = 5,
    low: float = 0.2,
    high: float = 0.8,
    tail: float = 1.5,
    rate: float = 0.1,
    natural: bool = False,
    share: str = "sum_mean",
    scale: str = "std",
    eps: float = 1e-6,
) -> list[float]:
    """`quantiles` is the record of earlier batches, [] before the first, which is brought up to date."""
    questions: list[int] = []
    for g in groups:
        if g not in questions:
            questions.append(g)
    rows = {q: [i for i, g in enumerate(groups) if g == q] for q in questions}
    papers: dict[tuple[int, int], list[int]] = {}
    for number, q in enumerate(questions):
        for k, row in enumerate(rows[q]):
            papers.setdefault((number // bundle, k), []).append(row)
    score = {p: bundle * math.fsum(float(rewards[i]) for i in m) / len(m) for p, m in papers.items()}
    for p, m in papers.items():
        if all(rewards[i] == rewards[m[0]] for i in m):
            score[p] = bundle * float(rewards[m[0]])
    if not quantiles:
        quantiles += [quantile(list(score.values()), level) for level in (low, high)]
    a, b = quantiles[0], max(quantiles)
    for place, (q, level) in enumerate(((a, low), (b, high))):
        quantiles[place] = q + rate * (level - sum(x < q for x in score.values()) / len(score))
    out = [0.0] * len(rewards)
    for p, m in papers.items():
        x = score[p]
        g = max(x - a, 0) - max(x - b, 0) + (a - b if natural else 0)
        c = -max(a - x, 0)
        worth = (tail * c / (low + eps) + g / (high - low + eps)) / (tail + 1)
        others = [score[o] for o in papers if o[0] == p[0]]
        if scale == "std" and len(set(others)) > 1:
            worth /= std(others, 1) + eps
        gain = {}
        for i in m:
            mine = [float(rewards[j]) for j in members(groups, i)]
            gain[i] = 0.0 if len(set(mine)) == 1 else float(rewards[i]) - math.fsum(mine) / len(mine)
        total = math.fsum(gain.values())
        for i in m:
            part = gain[i] / total if abs(total) > 1e-6 else 1 / len(m)
            out[i] = worth * (1.0 if share == "uniform" else part)
    return out
