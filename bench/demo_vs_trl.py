"""Training seconds to 80% sampled held-out accuracy on the demo's task, against TRL, from the same warm start.

The demo's recipe warm-starts a model once and saves it; both trainers start from that folder with the same prompts,
batch, learning rate and clipping, and are evaluated by their own sampler. Evaluations are not in the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environments import SCRATCH, trl_python
from bench.results import Figure, Findings
from bench.workers import TRL, Worker, ours
from bench.workload import write_rows

TARGET, EVERY, MOST = 0.8, 10, 400


def run(options: Any) -> Findings:
    found, runs = Findings(), options.runs_or(3, 1)
    curves: dict[str, list[list[dict[str, float]]]] = {"coterie": [], "trl": []}
    for seed in range(runs):
        config = _warm_started(seed)
        with ours("coterie", config) as left, Worker("trl", trl_python(), TRL, config) as right:
            for name, curve in _train([left, right]).items():
                curves[name].append(curve)
            found.detail["versions"] = {"trl": right.ready["trl"]}
    ends = {side: [curve[-1] for curve in each] for side, each in curves.items()}
    for seed in range(runs):
        for side in curves:
            end = ends[side][seed]
            found.rows.append({"seed": seed, "side": side, "training s": end["seconds"], "steps": end["step"],
                               "s a step": end["seconds"] / end["step"], "accuracy": end["accuracy"]})  # fmt: skip
    medians = {side: statistics.median(e["seconds"] for e in each) for side, each in ends.items()}
    found.figures.append(
        Figure("training time to 80% held-out accuracy on the demo against TRL", medians["trl"] / medians["coterie"],
               3.0, runs)
    )  # fmt: skip
    found.detail["curves"] = curves
    found.notes.append(
        f"1 torch thread, as the demo; a step in turn, checked every {EVERY}, at most {MOST}; same seed, same start"
    )
    return found


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


def _warm_started(seed: int) -> dict[str, Any]:
    """The demo's model after its warm start, and its prompts, on disk; the settings both workers need."""
    from coterie.build import build
    from coterie.cli.demo import DEMOS, RECIPES
    from coterie.hardware import use_threads
    from coterie.recipe import resolve
    from coterie.warm_start import warm_start

    recipe = resolve(file=RECIPES / DEMOS["sort"], overrides=[f"seed={seed}"])
    settings, folder = recipe.settings, SCRATCH / f"demo-{seed}"
    if not (folder / "model" / "config.json").exists():
        use_threads(recipe.settings.threads)
        run = build(recipe)
        warm_start(run, lambda text: None)
        for name, rows in (("train", run.task.train), ("held_out", run.task.held_out[:256])):
            write_rows(folder / f"{name}.jsonl", [{"prompt": r["prompt"], "answer": r["answer"]} for r in rows])
        run.policy.save(Path(folder) / "model")
    return {
        "model": str(folder / "model"), "data": str(folder / "train.jsonl"), "held_out": str(folder / "held_out.jsonl"),
        "eval_samples": 2, "reward": "exact", "prompts": settings.draw.prompts,
        "group_size": settings.rollout.group_size, "max_tokens": settings.rollout.max_tokens, "ignore_eos": False,
        "lr": recipe.single["optimizer"].settings["lr"], "dtype": "float32", "threads": 1, "seed": seed,
        "scratch": str(SCRATCH / "trl"),
    }  # fmt: skip
