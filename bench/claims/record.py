"""What an experiment found: paired differences with their interval, a verdict, and bench/results/claims/SLUG.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.claims import Experiment, Figures, Side
from bench.results import RESULTS, machine, versions

CLAIMS = RESULTS / "claims"
LEVEL = 0.95
SHOWS, OPPOSITE, UNDECIDED = "shows", "the opposite shows", "does not show"
PARTLY = "shows in part"


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and the ends of its Student-t interval."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def compared(ours: Sequence[Figures], baseline: Sequence[Figures], name: str) -> dict[str, Any]:
    """One figure on both sides, seed by seed."""
    a, b = [f[name] for f in ours], [f[name] for f in baseline]
    mean, low, high = interval([x - y for x, y in zip(a, b, strict=True)])
    return {
        "figure": name, "ours": statistics.fmean(a), "baseline": statistics.fmean(b), "difference": mean,
        "interval": [low, high], "values": {"ours": a, "baseline": b},
    }  # fmt: skip


def verdict(figures: Sequence[dict[str, Any]], experiment: Experiment) -> str:
    """Whether the interval of the first figure's difference lies on the claim's side of 0, on the other, or holds it. A
    claim that there is no difference shows where the interval is narrow enough around 0, and fails where it leaves 0
    out. A claim that another figure is kept meanwhile shows in part where that falls.
    """
    low, high = figures[0]["interval"]
    if experiment.equal is not None:
        if max(-low, high) <= experiment.equal:
            return SHOWS
        return OPPOSITE if low > 0 or high < 0 else UNDECIDED
    if not experiment.higher:
        low, high = -high, -low
    if low <= 0:
        return OPPOSITE if high < 0 else UNDECIDED
    name, loss = experiment.keeps or ("", 0.0)
    return PARTLY if any(f["figure"] == name and f["difference"] < -loss for f in figures) else SHOWS


@dataclass(frozen=True)
class Played:
    """A side as it was played: with its overrides, the learning rate it chose, and its figures by seed."""

    side: Side
    rate: float | None
    figures: list[Figures]


def record(experiment: Experiment, ours: Played, baseline: Played, seconds: float) -> dict[str, Any]:
    names = dict.fromkeys([experiment.figure, *([experiment.keeps[0]] if experiment.keeps else []), *experiment.also])
    figures = [compared(ours.figures, baseline.figures, name) for name in names]
    count = len(ours.figures)
    better = "equal" if experiment.equal is not None else "higher" if experiment.higher else "lower"
    body = {
        "slug": experiment.slug, "paper": experiment.paper, "claim": experiment.claim, "how": experiment.how,
        "note": experiment.note, "better": better,
                "ours": _side(ours), "baseline": _side(baseline), "seeds": count, "level": LEVEL,
        "rates": list(experiment.rates),
        "verdict": verdict(figures, experiment), "figures": figures,
        "command": f"python -m bench.claims {experiment.slug} --seeds {count}", "seconds": round(seconds, 1),
        "machine": machine(), "versions": versions(),
    }  # fmt: skip
    CLAIMS.mkdir(parents=True, exist_ok=True)
    path = CLAIMS / f"{experiment.slug}.json"
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return body


def _side(played: Played) -> dict[str, Any]:
    side = played.side
    return {"label": side.label, "method": side.method, "overrides": list(side.overrides), "rate": played.rate}


def recorded() -> list[dict[str, Any]]:
    """Every recorded result, by slug."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CLAIMS.glob("*.json"))]
