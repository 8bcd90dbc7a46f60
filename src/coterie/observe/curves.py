"""curves.png: how a run went, as small multiples. Panels without data are left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coterie.observe.files import replacing

Rows = Sequence[Mapping[str, Any]]
Panel = Callable[[Any, Rows], bool]

INK, FAINT, GRID = "#1f2328", "#6e7781", "#e6e8eb"
COLOURS = ("#2563eb", "#e8590c", "#2b8a3e", "#9c36b5", "#c92a2a", "#868e96", "#e0a800")
"""Blue, orange, green, purple, red, grey, yellow: distinct in print and to most colour-blind readers."""

PHASES = dict(zip(("generate", "score", "reference", "learn"), COLOURS, strict=False))
"""Phases of a training step, each with its colour in every run."""


def draw(metrics: Rows, path: str | Path, *, title: str, panels: Sequence[Panel] | None = None) -> bool:
    """Write the figure, atomically. False (and no file) when no metric can be drawn. panels: others than a run's."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        drawn: list[list[Any]] = []
        for panel in panels or PANELS:
            axes = figure.add_subplot()
            if panel(axes, metrics):
                drawn.append([a for a in figure.axes if a not in itertools.chain(*drawn)])  # one scale, or two
            else:
                axes.remove()
        if not drawn:
            return False
        across = 1 if len(drawn) == 1 else 2 if len(drawn) in (2, 4) else 3
        down = -(-len(drawn) // across)
        figure.set_size_inches(4.3 * across, 2.75 * down + 0.5)
        figure.suptitle(title, fontsize=15, fontweight="bold", color=INK, parse_math=False)
        places = figure.add_gridspec(down, across)
        for number, scales in enumerate(drawn):
            for axes in scales:
                axes.set_subplotspec(places[number])
            scales[0].margins(x=0.02)
            if number + across >= len(drawn):
                scales[0].set_xlabel("step")
        with replacing(Path(path), "the curves") as temporary:
            render(figure, temporary)
    return True


def render(figure: Any, file: Path) -> None:
    """Write the figure as PNG. It is laid out first: saving one that is not yet draws it twice."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    figure.savefig(file, format="png", metadata={"Software": None})


def held_out(axes: Any, rows: Rows) -> bool:
    """Held-out accuracy: sampled with its interval, greedy beside it."""
    steps, values = series(rows, "eval/accuracy")
    if not len(steps):
        return False
    band = [series(rows, f"eval/accuracy_{end}")[1] for end in ("low", "high")]
    if all(len(b) == len(steps) for b in band):
        axes.fill_between(steps, *band, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(steps, values, color=COLOURS[0], marker=_marker(steps), label="sampled")
    greedy_steps, greedy = series(rows, "eval/greedy")
    if len(greedy_steps):
        axes.plot(greedy_steps, greedy, color=COLOURS[1], linestyle="--", marker=_marker(greedy_steps), label="greedy")
    _share_axis(axes)
    return _finish(axes, "held-out accuracy")


def training(axes: Any, rows: Rows) -> bool:
    """Training accuracy, and the reward where it is something else."""
    accuracy = series(rows, "accuracy")
    reward = series(rows, "reward/mean")
    if len(accuracy[0]):
        _line(axes, *accuracy, COLOURS[0], "accuracy")
        _share_axis(axes)
    if len(reward[0]) and not (len(accuracy[0]) == len(reward[0]) and np.allclose(accuracy[1], reward[1], atol=1e-6)):
        target = _right_axis(axes, COLOURS[0], COLOURS[1], "reward") if len(accuracy[0]) else axes
        _line(target, *reward, COLOURS[1], "reward")
    return _finish(axes, "training rollouts") if len(accuracy[0]) or len(reward[0]) else False


def entropy(axes: Any, rows: Rows) -> bool:
    """Entropy of the policy's decisions, nats."""
    return _lines(axes, rows, {"entropy/mean": "entropy"}, "entropy (nats a decision)")


def distance(axes: Any, rows: Rows) -> bool:
    """How far updates move: KL to the reference, clipped share. Two scales only where both are there."""
    kl, clip = series(rows, "kl/ref"), series(rows, "clip/fraction")
    if len(kl[0]) and len(clip[0]) and np.any(clip[1]):
        _line(axes, *kl, COLOURS[3], "KL to reference")
        other = _right_axis(axes, COLOURS[3], COLOURS[1], "clipped")
        _line(other, *clip, COLOURS[1], "clipped")
        _share_axis(other, top=None)
        return _finish(axes, "KL and clipping")
    if len(kl[0]):
        return _lines(axes, rows, {"kl/ref": "KL"}, "KL to the reference (nats)")
    if not len(clip[0]):
        return False
    _line(axes, *clip, COLOURS[1], "clipped")
    _share_axis(axes, top=None)
    return _finish(axes, "clipped share of decisions")


def length(axes: Any, rows: Rows) -> bool:
    """Decisions a rollout, and the share cut off by the budget."""
    steps, values = series(rows, "length/mean")
    if not len(steps):
        return False
    _line(axes, steps, values, COLOURS[2], "mean length")
    axes.set_ylim(bottom=0)
    cut_steps, cut = series(rows, "length/truncated_share")
    if len(cut_steps) and np.any(cut):
        other = _right_axis(axes, COLOURS[2], COLOURS[4], "truncated")
        _line(other, cut_steps, cut, COLOURS[4], "truncated")
        _share_axis(other)
    return _finish(axes, "completion length", legend="center left")


def gradient(axes: Any, rows: Rows) -> bool:
    """Norm of the gradient before it is clipped."""
    return _lines(axes, rows, {"grad/norm": "norm"}, "gradient norm")


def dead_groups(axes: Any, rows: Rows) -> bool:
    """Groups whose rollouts all earned the same: they teach nothing."""
    steps, values = series(rows, "groups/dead_share")
    if not len(steps):
        return False
    _line(axes, steps, values, COLOURS[4], "dead groups")
    _share_axis(axes)
    return _finish(axes, "groups that agree (no signal)")


def advantage(axes: Any, rows: Rows) -> bool:
    """Spread of the advantages the update used."""
    return _lines(axes, rows, {"advantage/std": "std", "advantage/abs_mean": "mean |A|"}, "advantage spread")


def time_split(axes: Any, rows: Rows) -> bool:
    """Seconds a training step, stacked by phase. Row 0 (the warm start) and evaluations are left out."""
    rows = [r for r in rows if r.get("step", 0) > 0 and isinstance(r.get("time/step"), int | float)]
    if len(rows) < 2:
        return False
    steps = np.array([r["step"] for r in rows], dtype=float)
    names = [p for p in PHASES if any(r.get(f"time/{p}") for r in rows)]
    parts = [smooth(np.array([r.get(f"time/{p}") or 0.0 for r in rows])) for p in names]
    total = smooth(np.array([r["time/step"] - (r.get("time/eval") or 0.0) for r in rows]))
    other = np.clip(total - sum(parts, np.zeros(len(rows))), 0.0, None)
    colours = [*(PHASES[name] for name in names), "#ced4da"]
    axes.stackplot(steps, *parts, other, labels=[*names, "other"], colors=colours, alpha=0.85)
    axes.set_ylim(0, float(total.max()) * 1.4)
    return _finish(axes, "seconds a training step", legend="upper left")


PANELS: tuple[Panel, ...] = (
    held_out, training, entropy, length, gradient, distance, dead_groups, advantage, time_split
)  # fmt: skip


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have a number for `key`."""
    found = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float)]
    table = np.array(found, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about a twentieth of the run, shrinking at the ends."""
    half = len(values) // 40
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """A smoothed line over the raw one."""
    if len(steps) >= 40:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
        axes.plot(steps, smooth(values), color=colour, label=label)
    else:
        axes.plot(steps, values, color=colour, marker=_marker(steps), label=label)


def _right_axis(axes: Any, left: str, right: str, label: str) -> Any:
    """A second scale; each scale has the colour of its line. The label joins the first one's legend."""
    other = axes.twinx()
    other.spines["right"].set_visible(True)
    other.grid(False)
    axes.tick_params(axis="y", colors=left)
    other.tick_params(axis="y", colors=right)
    axes.plot([], [], color=right, label=f"{label} (right)")
    axes.set_zorder(other.get_zorder() + 1)  # so that the legend covers both lines
    axes.patch.set_visible(False)
    return other


def _lines(axes: Any, rows: Rows, labels: Mapping[str, str], title: str) -> bool:
    drawn = False
    for (key, label), colour in zip(labels.items(), COLOURS, strict=False):
        steps, values = series(rows, key)
        if len(steps):
            _line(axes, steps, values, colour, label)
            drawn = True
    if drawn and axes.get_ylim()[0] > 0 and axes.get_ylim()[0] < 0.5 * axes.get_ylim()[1]:
        axes.set_ylim(bottom=0)
    return _finish(axes, title) if drawn else False


def _marker(steps: np.ndarray) -> str:
    return "o" if len(steps) <= 25 else ""


def _share_axis(axes: Any, top: float | None = 1.0) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(bottom=0, top=None if top is None else top * 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top is not None else None))


def _finish(axes: Any, title: str, legend: str = "best") -> bool:
    axes.set_title(title, loc="left")
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(loc=legend, ncols=2 if len(handles) > 3 else 1)
    return True


_STYLE: Any = {
    "font.size": 11, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": FAINT,
    "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#b1b8c0", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "lines.linewidth": 2.0, "lines.markersize": 4.5,
    "legend.frameon": True, "legend.framealpha": 0.75, "legend.edgecolor": "none", "legend.fontsize": 10,
    "figure.facecolor": "white", "axes.facecolor": "white",
}  # fmt: skip
