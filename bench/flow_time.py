"""Training time to equal held-out reward: MixGRPO and BranchGRPO against Flow-GRPO, on the task `ring`.

One process, the methods in turn for each seed, another first each time, from the same warm-started weights. All have
the same model, prompts, group size, steps, sampler, clip range and learning rate; what differs is which steps draw
noise, what paths share, how they are credited, and Flow-GRPO's KL. Time is wall time of training without evaluations:
steps to the level times the median step of that run, since a machine may be shared. The level is a held-out accuracy of
samples by the ODE, looked at after every step; when it is reached is told between two steps, on the line through them.
"""

from __future__ import annotations

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.pictures import save
from bench.results import Figure, Findings, spread

PATH = ROOT / "docs" / "img" / "flow_time.png"
LEVEL, STEPS = 0.9, 30
BASE = "flow-grpo"
COMMON = [
    "task=ring", "model={flow: {layers: 3, width: 64, heads: 4}}", "denoise.steps=8", "draw.prompts=8",
    "rollout.group_size=8", "warm_start.steps=200", f"steps={STEPS}", "evaluation.every=1",
    "evaluation.prompts=128", "optimizer.lr=1e-3", "rollout.sampler={flow_sde: {noise: 0.7}}",
    "objective.trust_region.ppo_clip={eps_low: 1.0e-4, eps_high: 1.0e-4}",
]  # fmt: skip
METHODS = {
    BASE: [],
    "mixgrpo": ["rollout.strategy.size=3", "rollout.strategy.every=6"],
    "branchgrpo": ["rollout.strategy.splits=[0,1,3]"],
}
COLOURS = ("#1f77b4", "#d95f02", "#7b3294")
PHASES = ("time/generate", "time/score", "time/reference", "time/learn")
"""What a step is made of; the few milliseconds between them are the same for all."""


def run(options: Any) -> Findings:
    import torch

    torch.set_num_threads(options.threads)
    found, seeds = Findings(), options.runs_or(5, 2)
    curves: dict[str, list[list[tuple[float, float]]]] = {slug: [] for slug in METHODS}
    rows: dict[str, list[dict[str, Any]]] = {slug: [] for slug in METHODS}
    for seed in range(seeds):
        for slug in _rotated(list(METHODS), seed):
            row, curve = _train(slug, seed)
            rows[slug].append(row)
            curves[slug].append(curve)
    for slug, each in rows.items():
        reached = [r["seconds"] for r in each if r["seconds"] is not None]
        found.rows.append({
            "method": slug, "reached": f"{len(reached)} of {seeds}",
            "steps": statistics.median(r["steps"] for r in each if r["steps"] is not None) if reached else None,
            "ms a step": 1e3 * statistics.median(r["step"] for r in each),
            "seconds": statistics.median(reached) if reached else None,
        })  # fmt: skip
        found.detail[slug] = {"step": spread([r["step"] for r in each]), "runs": each, "curves": curves[slug]}
    for slug in METHODS:
        pairs = [(a["seconds"], b["seconds"]) for a, b in zip(rows[BASE], rows[slug], strict=True)]
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        if slug != BASE and ratios:
            found.figures.append(Figure(
                f"training time to {LEVEL:.0%} held out, {BASE} over {slug}", statistics.median(ratios), None,
                len(ratios),
            ))  # fmt: skip
            found.detail[slug]["ratios"] = spread(ratios)
    found.notes.append(f"wall time of training to a held-out accuracy of {LEVEL:.0%}; medians over seeds")
    draw(curves)
    return found


def _rotated(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def _train(slug: str, seed: int) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """When the level was reached, and (seconds, accuracy) at every evaluation."""
    from coterie.api import start
    from coterie.recipe import resolve

    recipe = resolve(method=slug, overrides=[*COMMON, *METHODS[slug], f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        metrics = start(recipe, Path(folder) / "run", quiet=True).metrics
    step = statistics.median(sum(r.get(p, 0.0) for p in PHASES) for r in metrics if "time/learn" in r)
    curve = [(r["step"] * step, r["eval/accuracy"]) for r in metrics if "eval/accuracy" in r]
    seconds = _crossing(curve)
    return {"step": step, "steps": None if seconds is None else seconds / step, "seconds": seconds}, curve


def draw(curves: dict[str, list[list[tuple[float, float]]]]) -> None:
    """Held-out accuracy over time: a thin line a seed, a thick one the mean, a dot where that comes to the level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import PercentFormatter

    picture = Picture(figsize=(7, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    for colour, (slug, lines) in enumerate(curves.items()):
        for line in lines:
            axes.plot(*zip(*line, strict=True), color=COLOURS[colour], alpha=0.3, linewidth=0.8)
        places = list(zip(*lines, strict=True))
        mean = [tuple(statistics.mean(numbers) for numbers in zip(*at, strict=True)) for at in places]
        axes.plot(*zip(*mean, strict=True), color=COLOURS[colour], linewidth=2, label=slug)
        if (at := _crossing(mean)) is not None:
            axes.plot(at, LEVEL, "o", color=COLOURS[colour], markersize=6, markeredgecolor="white", zorder=3)
    axes.axhline(LEVEL, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlabel="training time, seconds", ylabel="held-out accuracy", xlim=(0, None), ylim=(0.2, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, loc="lower right", title=f"means of seeds; dots: {LEVEL:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    save(picture, PATH)


def _crossing(line: list[tuple[float, float]]) -> float | None:
    """When a line first comes to the level, between two evaluations."""
    for (a, low), (b, high) in pairwise(line):
        if low < LEVEL <= high:
            return a + (b - a) * (LEVEL - low) / (high - low)
    return None
