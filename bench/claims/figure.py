"""docs/img/claims.png: one panel an experiment, a line a seed from the baseline to the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.claims.record import OPPOSITE, PARTLY, SHOWS, UNDECIDED, interval
from bench.environments import ROOT
from bench.pictures import save

PATH = ROOT / "docs" / "img" / "claims.png"
COLOURS = {SHOWS: "#2b8a3e", PARTLY: "#8a6d00", OPPOSITE: "#c92a2a", UNDECIDED: "#6e7781"}
ACROSS = 5


def draw(results: Sequence[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(results) // ACROSS)
    figure = Figure(figsize=(2.9 * ACROSS, 2.6 * down), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, result in enumerate(results, start=1):
        _panel(figure.add_subplot(down, ACROSS, place), result)
    save(figure, PATH)


def _panel(axes: Any, result: dict[str, Any]) -> None:
    first, colour = result["figures"][0], COLOURS[result["verdict"]]
    pairs = list(zip(first["values"]["baseline"], first["values"]["ours"], strict=True))
    for pair in pairs:
        axes.plot([0, 1], pair, color=colour, alpha=0.3, linewidth=1)
    for place, values in enumerate(zip(*pairs, strict=True)):
        mean, low, high = interval(values)
        axes.errorbar(place, mean, [[mean - low], [high - mean]], color=colour, marker="o", capsize=4, linewidth=2)
    axes.set_xticks([0, 1], [result["baseline"]["label"], result["ours"]["label"]], fontsize=8)
    axes.set_xlim(-0.35, 1.35)
    axes.tick_params(axis="y", labelsize=8)
    arrow = {"higher": "more is better", "lower": "less is better", "equal": "no difference is claimed"}[
        result["better"]
    ]
    axes.set_title(f"{result['slug']}\n{result['verdict']}", fontsize=9, fontweight="bold", loc="left", color=colour)
    axes.set_ylabel(f"{first['figure']}\n({arrow})", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
