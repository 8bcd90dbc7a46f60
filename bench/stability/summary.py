"""From cells to rows: means with their interval over seeds, and whether an objective still learns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from bench.claims.record import interval
from bench.stability import LATE, OBJECTIVES

LEARNS, UNDECIDED, FALLS = "learns", "undecided", "falls"
FIGURES = ("accuracy", "entropy", "kl", "grad_norm")

Row = dict[str, Any]
"""An objective: label, method, and by lateness (as text) seeds, verdict, and of each figure mean and half interval."""


def rows(cells: Sequence[dict[str, Any]]) -> list[Row]:
    """Objectives that have cells, the most accurate over the late batches (all but 0) first."""
    out = []
    for objective in OBJECTIVES:
        mine = [c for c in cells if c["objective"] == objective.label]
        if mine:
            at = {late: [c for c in mine if c["late"] == late] for late in LATE}
            late = {str(number): _point(found) for number, found in at.items() if found}
            out.append({"objective": objective.label, "method": mine[0]["method"], "late": late})
    return sorted(out, key=lambda row: -_late_accuracy(row))


def _point(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": len(cells), "verdict": verdict(cells)}
    for figure in FIGURES:
        values = [c[figure] for c in cells if c[figure] is not None]
        mean, low, _ = interval(values) if values else (math.nan, math.nan, math.nan)
        found[figure] = [_plain(mean), _plain(mean - low)]
    return found


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _late_accuracy(row: Row) -> float:
    return statistics.fmean([p["accuracy"][0] for n, p in row["late"].items() if n != "0"] or [0.0])


def verdict(cells: Sequence[dict[str, Any]]) -> str:
    """Whether the 95 % interval of the gain in accuracy over the first weights is above 0, below it, or holds it."""
    _, low, high = interval([c["accuracy"] - c["start"] for c in cells])
    return LEARNS if low > 0 else FALLS if high < 0 else UNDECIDED


def shown(point: dict[str, Any] | None, figure: str) -> str:
    """Mean and half the interval, as text; nothing where there was no update to measure."""
    mean, half = (point or {}).get(figure, (None, None))
    return "" if mean is None else f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")
