"""Training seconds to 80% sampled held-out accuracy against TRL from the same warm start: the demo, and countdown.

A demo's recipe warm-starts a model and saves it; both trainers start from that folder with the same prompts,
batch, learning rate and clipping, and are evaluated by their own sampler. Evaluations are not in the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.environments import SCRATCH, trl_python
from bench.results import Figure, Findings
from bench.workers import TRL, Worker, ours
from bench.workload import write_rows

TARGET, EVERY, MOST = 0.8, 10, 400
SETTINGS: dict[str, dict[str, Any]] = {
    "the demo": {"demo": "sort", "reward": "exact", "columns": ("answer",), "runs": 3},
    "countdown": {"demo": "countdown", "reward": "countdown", "columns": ("numbers", "target"), "runs": 5},
}


def run(options: Any) -> Findings:
    found = Findings()
    for name, setting in SETTINGS.items():
        if options.wants(name):
            _measure(found, name, setting, options.runs_or(setting["runs"], 1))
    found.notes.append(
        f"1 torch thread, as the demos; a step in turn, checked every {EVERY}, at most {MOST}; same seed, same start"
    )
    return found


def _measure(found: Findings, name: str, setting: dict[str, Any], runs: int) -> None:
    curves: dict[str, list[list[dict[str, float]]]] = {"coterie": [], "trl": []}
    for seed in range(runs):
        config = _warm_started(setting, seed)
        with ours("coterie", config) as left, Worker("trl", trl_python(), TRL, config) as right:
            for side, curve in _train([left, right]).items():
                curves[side].append(curve)
            found.detail["versions"] = {"trl": right.ready["trl"]}
    ends = {side: [curve[-1] for curve in each] for side, each in curves.items()}
    for seed in range(runs):
        for side in curves:
            end = ends[side][seed]
            found.rows.append({"setting": name, "seed": seed, "side": side, "training s": end["seconds"],
                               "steps": end["step"], "s a step": end["seconds"] / end["step"],
                               "start": curves[side][seed][0]["accuracy"], "accuracy": end["accuracy"]})  # fmt: skip
    medians = {side: statistics.median(e["seconds"] for e in each) for side, each in ends.items()}
    found.figures.append(
        Figure(f"training time to 80% held-out accuracy on {name} against TRL", medians["trl"] / medians["coterie"],
               3.0, runs)
    )  # fmt: skip
    found.detail[name] = curves


def _train(workers: Sequence[Worker]) -> dict[str, list[dict[str, float]]]:
    """Both in turn, a step each, until each has reached the target: accuracy against training seconds."""
    curves = {w.name: [{"step": 0, "seconds": 0.0, "accuracy": w.ask("eval")["accuracy"]}] for w in workers}
    seconds, left = dict.fromkeys(curves, 0.0), list(workers)
    for step in range(1, MOST + 1):
        for worker in left:
            seconds[worker.name] += worker.ask("step")["seconds"]
        if step % EVERY == 0:
            for worker in left:
                point = {"step": step, "seconds": seconds[worker.name], "accuracy": worker.ask("eval")["accuracy"]}
                curves[worker.name].append(point)
            left = [w for w in left if curves[w.name][-1]["accuracy"] < TARGET]
    return curves


def _warm_started(setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """A demo's model after its warm start, and its prompts, on disk; the settings both workers need."""
    from coterie.build import build
    from coterie.cli.demo import DEMOS, RECIPES
    from coterie.hardware import use_threads
    from coterie.recipe import resolve
    from coterie.warm_start import warm_start

    name, keys = setting["demo"], ("prompt", *setting["columns"])
    recipe = resolve(file=RECIPES / DEMOS[name], overrides=[f"seed={seed}"])
    settings, folder = recipe.settings, SCRATCH / f"demo-{name}-{seed}"
    use_threads(settings.threads)
    run = build(recipe)
    warm_start(run, lambda text: None)
    for side, rows in (("train", run.task.train), ("held_out", run.task.held_out[:256])):
        write_rows(folder / f"{side}.jsonl", [{key: row[key] for key in keys} for row in rows])
    run.policy.save(folder / "model")
    return {
        "model": str(folder / "model"), "data": str(folder / "train.jsonl"), "held_out": str(folder / "held_out.jsonl"),
        "eval_samples": 2, "reward": setting["reward"], "prompts": settings.draw.prompts,
        "group_size": settings.rollout.group_size, "max_tokens": settings.rollout.max_tokens, "ignore_eos": False,
        "lr": recipe.single["optimizer"].settings["lr"], "dtype": "float32", "threads": 1, "seed": seed,
        "scratch": str(SCRATCH / "trl"),
    }  # fmt: skip
