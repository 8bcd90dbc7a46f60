"""Share of a step's wall time outside model compute: the real loop with its reporter, on the demo and on a 100M model.

Model compute is what a trainer cannot avoid: the decode's prefill and steps, the scoring forward with its log-probs,
backward, gradient norm and optimizer step. Everything else is overhead: sampling, stopping, rewards, credit, tables,
metrics and files.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.results import Figure, Findings, spread
from bench.rewards import REWARDS
from bench.workload import step_config


def run(options: Any) -> Findings:
    found = Findings()
    cases = {"demo": (0.25, _demo, options.runs_or(40, 15))}
    if not options.quick:
        cases["100M"] = (0.05, _large, 3)
    for name, (bar, make, steps) in cases.items():
        if not options.wants(name):
            continue
        shares, parts = _measure(make(options.threads, steps + 2))
        found.figures.append(Figure(f"share outside model compute, {name}", statistics.median(shares), bar, len(shares),
                                    at_most=True))  # fmt: skip
        medians = {key: statistics.median(p[key] for p in parts) for key in parts[0]}
        found.rows.append({"setting": name, **medians, "outside": statistics.median(shares)})
        found.detail[name] = {"share": spread(shares), "seconds": parts}
    found.notes.append("seconds a step (medians); evaluations and checkpoints are left out")
    return found


def _demo(threads: int, steps: int) -> Any:
    from coterie.cli.demo import DEMOS, RECIPES
    from coterie.recipe import resolve

    small = ["evaluation.every=0", "evaluation.prompts=32", "checkpoint.every=0", "warm_start.steps=60"]
    return resolve(file=RECIPES / DEMOS["sort"], overrides=[f"steps={steps}", *small])


def _large(threads: int, steps: int) -> Any:
    from coterie.recipe import resolve

    config = step_config("100M", 256, 64, 2, 8, threads)
    values = {
        "model": config["model"], "task": {"jsonl": {"path": config["data"], "held_out": 1}}, "steps": steps,
        "threads": threads, "draw.prompts": 2, "rollout.group_size": 8, "rollout.max_tokens": 64, "checkpoint.every": 0,
    }  # fmt: skip
    return resolve(method="grpo", values=values, functions=[REWARDS["digit_share"]])


def _measure(recipe: Any) -> tuple[list[float], list[dict[str, float]]]:
    """Run a recipe; the share of each step outside model compute, and its seconds by part. Two steps warm up."""
    from coterie.build import build
    from coterie.hardware import use_threads
    from coterie.loop import train
    from coterie.observe.reporter import Reporter
    from coterie.observe.run_dir import RunDir

    use_threads(recipe.settings.threads)
    run, seconds = build(recipe), {"decode": 0.0, "score": 0.0, "backward": 0.0, "optimizer": 0.0}
    parts: list[dict[str, float]] = []

    class Timed(Reporter):
        began = 0.0

        def step(self, run: Any, batch: Any, clock: Any) -> None:
            super().step(run, batch, clock)
            if batch is not None:
                parts.append({"wall": time.perf_counter() - self.began, **seconds})
            seconds.update(dict.fromkeys(seconds, 0.0))
            self.began = time.perf_counter()

        def checkpoint(self, run: Any) -> None:
            self.began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, _instrumented(run, seconds):
        directory = RunDir.create(
            Path(folder) / "run", task=run.task.name, method=recipe.method, recipe=recipe.to_yaml(), seed=0
        )
        reporter = Timed(directory, run, quiet=True)
        with reporter.running():
            train(run, reporter)
        run.rewards.close()
    parts = parts[2:-1]  # the last step is followed by an evaluation
    return [1 - (sum(p.values()) - p["wall"]) / p["wall"] for p in parts], parts


@contextmanager
def _instrumented(run: Any, seconds: dict[str, float]) -> Iterator[None]:
    """Time the calls that are model compute, in place."""
    import torch

    def timed(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - began

        return inner

    decoder = run.policy.engine.decoder
    places = [
        (decoder, "step", "decode"), (decoder, "prefill", "decode"), (run.policy, "score", "score"),
        (torch.Tensor, "backward", "backward"), (torch.nn.utils, "clip_grad_norm_", "optimizer"),
        (run.optimizer, "step", "optimizer"),
    ]  # fmt: skip
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
    for owner, name, part in places:
        wrapped = timed(getattr(owner, name), part)
        setattr(owner, name, wrapped)
    try:
        yield
    finally:
        for owner, name, own in before:
            delattr(owner, name) if own is None else setattr(owner, name, own)
