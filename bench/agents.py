"""Held-out success in worlds of many turns, a few seeds each; GiGPO against GRPO on one of them, and on another M-GRPO,
where a main agent and two sub-agents are policies of their own.

Every run is a recipe that ships with the package: a tiny model from random weights, a warm start on scripted episodes
that stops early, then RL. GiGPO differs from GRPO in the credit alone: baseline `state_norm`. Both start from the same
warm-started weights and see the same prompts, for the seed is the same.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.pictures import save
from bench.results import RESULTS, Figure, Findings, spread

PATH = ROOT / "docs" / "img" / "agents.png"
WORLDS = {"frozen-lake": 0.2, "guess-number": 0.1, "calculator": 0.15}
"""Recipe, and the rise of held-out success that its median seed must show."""
TOGETHER = {"main": 0.2, "left": 0.1, "right": 0.1}
"""The same of each policy of the recipe `delegation`."""
COMPARED = "frozen-lake"
GIGPO = ["credit.baseline=state_norm"]


def run(options: Any) -> Findings:
    found, seeds = Findings(), options.runs_or(3, 1)
    setups = [(world, "grpo", []) for world in WORLDS] + [(COMPARED, "gigpo", GIGPO), ("delegation", "m-grpo", [])]
    curves = _stored()
    for world, method, overrides in setups:
        name = f"{world}, {method}"
        if not options.wants(name):
            continue
        runs = [_train(world, method, seed, overrides) for seed in range(seeds)]
        for agent in runs[0]["curves"]:
            whose = f"{world}: {agent}" if agent else world
            _tell(found, curves, f"{whose}, {method}", whose, [{**r, "curve": r["curves"][agent]} for r in runs],
                  None if method == "gigpo" else TOGETHER[agent] if agent else WORLDS[world])  # fmt: skip
    mine, theirs = curves.get(f"{COMPARED}, gigpo"), curves.get(f"{COMPARED}, grpo")
    if mine and theirs and len(mine) == len(theirs) and options.wants(f"{COMPARED}, gigpo"):
        gaps = [_mean_after_start(a) - _mean_after_start(b) for a, b in zip(mine, theirs, strict=True)]
        found.detail["gigpo over grpo"] = spread(gaps)
        found.figures.append(Figure("held-out success, mean over the run, gigpo less grpo", statistics.median(gaps),
                                    None, seeds))  # fmt: skip
    found.notes.append("success of sampled episodes at temperature 1, a seed a number")
    found.notes.append("seconds are of the processor and of the trainer's process")
    draw(curves)
    return found


def _tell(
    found: Findings, curves: dict[str, Any], name: str, whose: str, runs: list[dict[str, Any]], bar: float | None
) -> None:
    """What became of one policy of some runs, a seed each."""
    curves[name] = [r["curve"] for r in runs]
    starts, ends = ([curve[i][1] for curve in curves[name]] for i in (0, -1))
    rises = [b - a for a, b in zip(starts, ends, strict=True)]
    found.rows.append({
        "world": name, "before": _percent(starts), "after": _percent(ends), "steps": curves[name][0][-1][0],
        "CPU s a run": statistics.median(r["cpu_seconds"] for r in runs),
    })  # fmt: skip
    kept = [{key: value for key, value in r.items() if key != "curves"} for r in runs]
    found.detail[name] = {"runs": kept, "rise": spread(rises)}
    if bar is not None:
        title = f"rise of held-out success, {whose}"
        found.figures.append(Figure(f"{title}, median", statistics.median(rises), bar, len(runs)))
        found.figures.append(Figure(f"{title}, least", min(rises), 0.0, len(runs)))


def _stored() -> dict[str, list[list[tuple[int, float]]]]:
    """The curves of the last run, for the settings that are not run now."""
    path = RESULTS / "agents.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    return {name: [r["curve"] for r in each["runs"]] for name, each in before.items() if "runs" in each}


def _mean_after_start(curve: list[tuple[int, float]]) -> float:
    return statistics.mean(success for _, success in curve[1:])


def _train(world: str, method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """(step, held-out success) at every evaluation, by policy, and what the run cost."""
    from coterie.api import start
    from coterie.cli.demo import RECIPES
    from coterie.recipe import resolve

    settings = ["checkpoint.every=0", "log.rollouts_every=0", "evaluation.greedy=false", f"seed={seed}"]
    recipe = resolve(file=RECIPES / f"{world}.yaml", overrides=[*settings, *overrides])
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        metrics = start(recipe, Path(folder) / "run", quiet=True).metrics
    curves: dict[str, list[tuple[int, float]]] = {}
    for agent in recipe.policies or [""]:
        key = f"agent/{agent}/eval/accuracy" if agent else "eval/accuracy"
        curve = curves[agent] = [(r["step"], r[key]) for r in metrics if key in r]
        print(f"{world} {agent}, {method}, seed {seed}: {_percent([curve[0][1], curve[-1][1]])}", flush=True)
    return {
        "curves": curves, "warm_start_steps": metrics[0]["warm_start/steps"],
        "dead_share": [r["groups/dead_share"] for r in metrics if "groups/dead_share" in r],
        "cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _percent(values: list[float]) -> str:
    return " / ".join(f"{100 * v:.0f}" for v in values) + " %"


def draw(curves: dict[str, list[list[tuple[int, float]]]]) -> None:
    """Held-out success over steps: a panel a world, a line a seed and their mean; two methods or three policies where
    there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    shown = {world: {method: f"{world}, {method}" for method in ("grpo", "gigpo")} for world in WORLDS}
    shown["delegation"] = {agent: f"delegation: {agent}, m-grpo" for agent in TOGETHER}
    picture = Picture(figsize=(3.3 * len(shown), 3.2), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, len(shown), sharey=True)
    for axes, (world, named) in zip(panels, shown.items(), strict=True):
        for colour, (label, name) in enumerate(named.items()):
            lines = curves.get(name)
            if lines is None:
                continue
            for line in lines:
                axes.plot(*zip(*line, strict=True), color=f"C{colour}", alpha=0.3, linewidth=0.9)
            places = list(zip(*lines, strict=True))
            mean = [(at[0][0], statistics.mean(y for _, y in at)) for at in places]
            axes.plot(*zip(*mean, strict=True), color=f"C{colour}", linewidth=2, label=label)
        axes.set_title(world, loc="left", fontsize=10)
        axes.set(xlabel="step", ylim=(0, 1))
        if axes.lines:
            axes.legend(frameon=False, loc="lower right", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out success")
    save(picture, PATH)
