"""Two sides that reward each other: held-out reward of each, before and after, over seeds.

UniRL on the task `draw-and-read`, where one policy draws and tells what is drawn, and Unified-GRPO on `redraw`, where
one describes a picture and another draws it again, in turns. Both are recipes that ship with the package: tiny models
from random weights, a warm start on scripted episodes that stops early, then RL. What is held out is a fifth of the
prompts, which are never trained on. In `redraw` both sides earn the same, so what each of them brings is the rise over
its own turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.results import Figure, Findings, spread

SIDES = {
    "draw-and-read": {"draw": 0.03, "read": 0.1},
    "redraw": {"describe": 0.1, "draw": 0.1},
}
"""Recipe, and the rise of held-out reward that the median seed must show, by side."""
LEAST = 0.01
"""By how much it must rise with every seed."""
TURNS = {"describe": 1, "draw": 2}
"""The first turn of each, of those of recipe `redraw`; in turn 0 both learn. It looks at held-out pictures where a turn
ends."""


def run(options: Any) -> Findings:
    found, seeds = Findings(), options.runs_or(3, 1)
    for name in filter(options.wants, SIDES):
        runs = [_train(name, seed) for seed in range(seeds)]
        found.detail[name] = {"runs": runs}
        for side, bar in SIDES[name].items():
            curves = [r["curves"][side] for r in runs]
            rises = [curve[-1]["reward"] - curve[0]["reward"] for curve in curves]
            found.rows.append({
                "side": f"{name}: {side}",
                "reward before": _each(curves, 0, "reward"), "after": _each(curves, -1, "reward"),
                "right before %": _each(curves, 0, "accuracy", 100),
                "right after %": _each(curves, -1, "accuracy", 100),
                "median rise": statistics.median(rises), "least rise": min(rises),
                "CPU s a run": statistics.median(r["cpu_seconds"] for r in runs),
            })  # fmt: skip
            found.detail[f"{name}: {side}"] = spread(rises)
            title = f"rise of held-out reward, {name}: {side}"
            found.figures.append(Figure(f"{title}, median", statistics.median(rises), bar, seeds))
            found.figures.append(Figure(f"{title}, least", min(rises), LEAST, seeds))
            if name == "redraw":
                own = [_over_turns(curve, TURNS[side]) for curve in curves]
                found.detail[f"{name}: {side}, own turns"] = spread(own)
                found.figures.append(
                    Figure(f"{title}, over its own turns, median", statistics.median(own), LEAST, seeds)
                )
                found.figures.append(Figure(f"{title}, over its own turns, least", min(own), LEAST, seeds))
    found.notes.append("of samples at temperature 1, a number a seed; right: the share without a fault")
    found.notes.append("CPU seconds are of whole runs, evaluations included")
    return found


def _over_turns(curve: list[dict[str, float]], first: int) -> float:
    """What the reward rose by in the turns of one side, every other one."""
    return sum(b["reward"] - a["reward"] for a, b in list(pairwise(curve))[first::2])


def _train(name: str, seed: int) -> dict[str, Any]:
    """Held-out reward and accuracy of each side at every evaluation, and what the run cost."""
    from coterie.api import start
    from coterie.cli.demo import RECIPES
    from coterie.recipe import resolve

    recipe = resolve(
        file=RECIPES / f"{name}.yaml", overrides=["checkpoint.every=0", "log.rollouts_every=0", f"seed={seed}"]
    )
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        metrics = start(recipe, Path(folder) / "run", quiet=True).metrics
    curves = {}
    for side in SIDES[name]:
        at = f"agent/{side}/eval"
        curves[side] = [
            {"step": r["step"], "reward": r[f"{at}/reward"], "accuracy": r[f"{at}/accuracy"]}
            for r in metrics if f"{at}/reward" in r
        ]  # fmt: skip
    print(f"{name}, seed {seed}: { ({s: [round(p['reward'], 3) for p in c] for s, c in curves.items()}) }", flush=True)
    return {
        "seed": seed, "curves": curves, "warm_start_steps": metrics[0]["warm_start/steps"],
        "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip


def _each(curves: list[list[dict[str, float]]], place: int, what: str, times: int = 1) -> str:
    return " / ".join(f"{times * c[place][what]:.{0 if times > 1 else 2}f}" for c in curves)
