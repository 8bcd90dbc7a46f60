"""docs/img/stability.png: a panel a figure, a row an objective, a column a lateness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.environments import ROOT
from bench.pictures import save
from bench.stability import LATE
from bench.stability.summary import FALLS, LEARNS, UNDECIDED, Row

PATH = ROOT / "docs" / "img" / "stability.png"
PANELS = {
    "accuracy": ("Accuracy at the end", "viridis", False),
    "entropy": ("Entropy, nats", "cividis", False),
    "kl": ("KL from the policy that sampled", "magma_r", True),
    "grad_norm": ("Gradient norm before clipping", "magma_r", True),
}
"""Figure -> title, colours, whether they follow the logarithm."""
SIGN = {LEARNS: "", UNDECIDED: " ~", FALLS: " ▼"}


def draw(found: Sequence[Row]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.4 + 0.33 * len(found)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(PANELS):
        _panel(figure.add_subplot(1, len(PANELS), place + 1), name, found, first=place == 0)
    figure.supxlabel(
        "updates late   (accuracy: ▼ below that of the first weights, ~ not to be told from it)", fontsize=10
    )
    save(figure, PATH)


def _panel(axes: Any, name: str, found: Sequence[Row], first: bool) -> None:
    import numpy as np

    title, colours, logarithmic = PANELS[name]
    points = [[row["late"].get(str(late), {}) for late in LATE] for row in found]
    means = [[point.get(name, (None,))[0] for point in line] for line in points]
    height = np.array([[_height(mean, logarithmic) for mean in line] for line in means])
    image = axes.imshow(height, aspect="auto", cmap=colours)
    low, high = np.nanmin(height), np.nanmax(height)
    for i, j in zip(*np.nonzero(np.isfinite(height)), strict=True):
        red, green, blue, _ = image.cmap((height[i, j] - low) / max(high - low, 1e-9))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        text = f"{means[i][j]:.2f}" + (SIGN[points[i][j]["verdict"]] if first else "")
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(LATE)), [str(late) for late in LATE], fontsize=9)
    axes.set_yticks(range(len(found)), [row["objective"] for row in found] if first else [], fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, loc="left")
    for side in axes.spines.values():
        side.set_visible(False)


def _height(value: float | None, logarithmic: bool) -> float:
    if value is None:
        return math.nan
    return math.log10(max(value, 1e-3)) if logarithmic else value
