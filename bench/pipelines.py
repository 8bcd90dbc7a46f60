"""GRPO on a pipeline of diffusers: reward and held-out accuracy before and after, adapters and whole denoiser.

The recipe `images.yaml` on its tiny SD3 pipeline of random weights, which no text has taught anything: what is measured
is that the loop moves a real pipeline's parts, not how a trained one improves. Accuracy is over held-out wordings, of
samples without noise, judged by their mean colour.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.pictures import save
from bench.results import Figure, Findings

PATH = ROOT / "docs" / "img" / "pipelines.png"
RECIPE = ROOT / "src" / "coterie" / "recipes" / "images.yaml"
WAYS = {"LoRA": [], "full": ["model.lora=null", "optimizer.lr=5e-3"]}
ENDS = 10
"""Training steps over which the first and the last reward are averaged."""


def run(options: Any) -> Findings:
    found, seeds = Findings(), options.runs_or(3, 1)
    curves: dict[str, list[list[float]]] = {}
    for way, overrides in WAYS.items():
        if not options.wants(way):
            continue
        rows = [_train(overrides, seed, options.threads, keep=way == "LoRA" and seed == 0) for seed in range(seeds)]
        curves[way] = [row["rewards"] for row in rows]
        found.rows.append({
            "trains": way,
            "reward, first": statistics.mean(r["rewards"][i] for r in rows for i in range(ENDS)),
            "reward, last": statistics.mean(r["rewards"][-1 - i] for r in rows for i in range(ENDS)),
            "held out, before": statistics.mean(r["before"] for r in rows),
            "held out, after": statistics.mean(r["after"] for r in rows),
            "s a step": statistics.median(r["step"] for r in rows),
        })  # fmt: skip
        rose = sum(r["after"] > r["before"] and _gain(r["rewards"]) > 0 for r in rows)
        found.figures.append(Figure(f"seeds that rose, {way}", rose / seeds, 1.0, seeds))
        found.detail[way] = {"runs": [{k: v for k, v in r.items() if k != "pictures"} for r in rows]}
        if rows[0]["pictures"]:
            draw(curves[way], rows[0]["pictures"])
    found.notes.append(f"rewards are means of {ENDS} training steps; means over seeds")
    return found


def _gain(rewards: list[float]) -> float:
    return statistics.mean(rewards[-ENDS:]) - statistics.mean(rewards[:ENDS])


def _train(overrides: list[str], seed: int, threads: int, *, keep: bool) -> dict[str, Any]:
    from matplotlib.image import imread

    from coterie.api import start
    from coterie.recipe import resolve

    recipe = resolve(file=RECIPE, overrides=[f"seed={seed}", f"threads={threads}", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        result = start(recipe, Path(folder) / "run", quiet=True)
        drawn = sorted((result.path / "samples").iterdir())
        pictures = [imread(drawn[0]), imread(drawn[-1])] if keep else []
    held_out = [row["eval/accuracy"] for row in result.metrics if "eval/accuracy" in row]
    return {
        "rewards": [row["reward/mean"] for row in result.metrics if "reward/mean" in row],
        "before": held_out[0], "after": held_out[-1], "held_out": held_out, "pictures": pictures,
        "step": statistics.median(row["time/step"] for row in result.metrics if "time/learn" in row),
    }  # fmt: skip


def draw(curves: list[list[float]], pictures: list[Any]) -> None:
    """The reward of each seed, and samples of held-out prompts before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 2.6), dpi=110, layout="constrained")
    FigureCanvasAgg(picture)
    left, middle, right = picture.subplots(1, 3, width_ratios=[1.2, 1, 1])
    for line in curves:
        left.plot(line, color="C0", linewidth=1)
    left.set(xlabel="step", ylabel="reward")
    left.spines[["top", "right"]].set_visible(False)
    for axes, pixels, title in zip((middle, right), pictures, ("before", "after"), strict=True):
        axes.imshow(pixels)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    save(picture, PATH)
