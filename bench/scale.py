"""The Ray engine on this machine: what it costs a step, how fast weights travel, and what it gains to run ahead.

Completions of an untrained model end by chance, so their lengths are geometric: a few are several times as long as the
others. The same recipe trains in one process, on Ray in step with its rollout workers, and with workers that run ahead.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import BenchError
from bench.results import Figure, Findings, spread

RECIPE = [
    "task={sort: {digits: 4, train: 400, held_out: 16, dense: true}}", "threads=1", "draw.prompts=8",
    "model={init: {layers: 4, width: 128, heads: 4, context: 320}}", "rollout.group_size=8", "rollout.max_tokens=256",
    "evaluation.prompts=16", "checkpoint.every=0", "log.rollouts_every=0", "optimizer.lr=1e-6",
]  # fmt: skip
RAY = ["scale.engine=ray", "scale.cpus=0.1"]
FIRST = 4
"""Times that weights are sent before it counts: until then each process touches memory that is new to it."""
PAUSE = 2.0
"""Seconds between two of them, as in a run: Ray frees memory about once a second."""
WARM = 3
"""First steps that are left out."""
SETTINGS = {
    "one process": [],
    "ray, in step, 1 rollout worker": RAY,
    "ray, in step, 2 rollout workers": [*RAY, "scale.rollout_workers=2"],
    "ray, 1 ahead, 1 rollout worker": [*RAY, "scale.max_staleness=1"],
    "ray, 2 ahead, 1 rollout worker": [*RAY, "scale.max_staleness=2"],
    "ray, 1 ahead, 2 rollout workers": [*RAY, "scale.max_staleness=1", "scale.rollout_workers=2"],
}

_PHASES = ("generate", "workers", "sync", "learn")
BARE = ("one process", "ray, in step, 1 rollout worker", "ray, 1 ahead, 1 rollout worker")
"""What the figures are of."""


def run(options: Any) -> Findings:
    try:
        import ray
    except ImportError:
        return Findings(skipped="ray is not installed")
    from coterie.scale.cluster import start_here

    found, steps, runs = Findings(), 8 if options.quick else 20, options.runs_or(3, 1)
    start_here(ray, num_cpus=2)
    try:
        names = [name for name in SETTINGS if options.wants(name) and (name in BARE or not options.quick)]
        made: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(runs):
            for name in made:
                made[name].append(_train(SETTINGS[name], steps))
        for name, each in made.items():
            found.rows.append({"setting": name, **{k: statistics.median(e[k] for e in each) for k in each[0]}})
            found.detail[name] = {"decisions a second": spread([e["decisions/s"] for e in each]), "runs": each}
        _figures(found, made, runs)
        if options.wants("weights"):
            _weights(found, ray, 256, 5)
        if options.wants("ceiling"):
            _ceiling(found, 5 if options.quick else 10)
    finally:
        ray.shutdown()
    found.notes.append("seconds a step and decisions a second of whole runs, start and first steps left out")
    return found


def _figures(found: Findings, made: dict[str, list[dict[str, float]]], runs: int) -> None:
    def median(name: str, key: str) -> float:
        return statistics.median(e[key] for e in made[name])

    _, step, ahead = BARE
    if step in made:
        waits = [(e["generate s"] + e["sync s"] - e["workers s"]) / e["step s"] for e in made[step]]
        share = statistics.median(waits)
        found.figures.append(Figure("share of a step that Ray and serialisation take", share, None, runs, at_most=True))
    if {step, ahead} <= set(made):
        gain = median(ahead, "decisions/s") / median(step, "decisions/s")
        found.figures.append(Figure("one step ahead over in step, 1 rollout worker", gain, None, runs))


def _train(settings: list[str], steps: int) -> dict[str, float]:
    """Seconds a step by phase, and decisions a second, of a whole run of its own."""
    from coterie.api import start
    from coterie.recipe import resolve

    with tempfile.TemporaryDirectory() as folder:
        recipe = resolve(method="grpo", overrides=[*RECIPE, *settings, f"steps={steps + WARM}"])
        rows = start(recipe, Path(folder, "run"), quiet=True).metrics[WARM + 1 : -1]  # the last one is evaluated
    if len(rows) != steps - 1:
        raise BenchError(f"{len(rows)} steps were recorded, not {steps - 1}")
    seconds = sum(row["time/step"] for row in rows)
    phases = {name: sum(r.get(f"time/{name}", 0.0) for r in rows) / len(rows) for name in _PHASES}
    return {
        "step s": seconds / len(rows),
        **{f"{name} s": value for name, value in phases.items()},
        "decisions/s": sum(row["tokens/decisions"] for row in rows) / seconds,
        "longest/mean": statistics.median(row["length/max"] / row["length/mean"] for row in rows),
        "staleness": statistics.mean(row.get("staleness/mean", 0.0) for row in rows),
    }


def _ceiling(found: Findings, steps: int) -> None:
    """What running ahead could gain with a core for each of trainer and worker: from the processor's time of a step's
    parts in one process, which other work on the machine does not lengthen.
    """
    import torch

    from coterie import loop
    from coterie.build import build
    from coterie.clock import Clock
    from coterie.collect import complete
    from coterie.recipe import resolve

    run = build(resolve(method="grpo", overrides=RECIPE))
    run.started, prompts = True, run.settings.draw.prompts
    parts: dict[str, list[float]] = {"generate": [], "generate as two jobs": [], "learn": []}

    def spent(name: str, *calls: Callable[[], Any]) -> None:
        began = time.process_time()
        for call in calls:
            call()
        parts[name].append(time.process_time() - began)

    def job(step: int, first: int, count: int) -> Callable[[], Any]:
        numbers = range(first, first + count)
        return lambda: complete(run, list(numbers), [(step, 0, n) for n in numbers], step)

    for step in range(steps + WARM):
        with torch.no_grad():
            spent("generate", job(step, 0, prompts))
            spent("generate as two jobs", job(step, 0, prompts // 2), job(step, prompts // 2, prompts // 2))
        loop.prepare(run, step, Clock())
        spent("learn", partial(loop.learn, run, step, Clock()))
    seconds = {name: statistics.median(values[WARM:]) for name, values in parts.items()}
    made, learned = seconds["generate"], seconds["learn"]
    gain = (made + learned) / max(made, learned)
    found.figures.append(Figure("the most that running ahead can gain on two free cores", gain, None, steps))
    found.detail["processor seconds of a step"] = seconds


def _weights(found: Findings, ray: Any, megabytes: int, runs: int) -> None:
    """GB/s of weights from one process to another, checked there: through the object store, where they are packed,
    summed, put in shared memory and copied in place; and straight through gloo, where they are copied aside first, for
    the trainer goes on then. Both ways by turns, with weights of which each is large enough to travel alone, and small
    ones that are packed.
    """
    import torch

    kinds = {"weights": (1024, megabytes // 4), "large weights": (4096, megabytes // 64)}
    for name, (width, count) in kinds.items():
        state = {f"w{i}": torch.randn(width, width) for i in range(count)}
        size = sum(t.numel() * t.element_size() for t in state.values()) / 1e9
        holder = ray.remote(_Holder).options(num_cpus=0.1).remote(width, count)
        ways = {
            "weight sync, GB/s": _by_objects(holder, state),
            "weight sync straight by gloo, GB/s": _by_gloo(holder, state),
        }
        parts: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
        for _ in range(runs + FIRST):
            for way, send in ways.items():
                time.sleep(PAUSE)
                for part, seconds in send(ray).items():
                    parts[way].setdefault(part, []).append(size / seconds)
        for way, each in parts.items():
            title = way if name == "weights" else f"{name}, {way}"
            found.figures.append(Figure(title, statistics.median(each["all"][FIRST:]), None, runs))
            found.detail[f"first {title}"] = each["all"][:FIRST]
            found.detail[title] = {
                "gigabytes": size,
                "GB/s": {part: spread(values[FIRST:]) for part, values in each.items()},
            }
        ray.kill(holder)


def _by_objects(holder: Any, state: dict[str, Any]) -> Callable[[Any], dict[str, float]]:
    from coterie.scale.weights import Packer

    packer = Packer()

    def send(ray: Any) -> dict[str, float]:
        began = time.perf_counter()
        kept = [ray.put(bucket) for bucket in packer.pack(state)]
        put = time.perf_counter()
        if ray.get(holder.load.remote(*kept)) != packer.digest:
            raise BenchError("the weights did not arrive as they were sent")
        done = time.perf_counter()
        return {"sum and put": put - began, "copy and check": done - put, "all": done - began}

    return send


def _by_gloo(holder: Any, state: dict[str, Any]) -> Callable[[Any], dict[str, float]]:
    import torch

    from coterie.scale.direct import Snapshot, Switchboard

    line, snapshot = Switchboard("127.0.0.1").line("gloo", torch.device("cpu")), Snapshot()

    def send(ray: Any) -> dict[str, float]:
        began = time.perf_counter()
        snapshot.take(state)
        taken = time.perf_counter()
        coming = holder.receive.remote(line.place)
        line.send(0, snapshot)
        ray.get(coming)  # raises where they do not arrive as they were sent
        done = time.perf_counter()
        return {"copy aside": taken - began, "send and check": done - taken, "all": done - began}

    return send


class _Holder:
    """A worker that has only weights."""

    def __init__(self, width: int, count: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.state = {f"w{i}": torch.zeros(width, width) for i in range(count)}
        self.pair: Any = None

    def load(self, *buckets: Any) -> int:
        from coterie.scale.weights import unpack

        return unpack(buckets, self.state)

    def receive(self, place: Any) -> None:
        import threading

        import torch

        from coterie.scale.direct import Pair

        if self.pair is None:
            self.pair = Pair(place, 1, place.address, torch.device("cpu"), threading.Event())
        self.pair.receive(0, self.state)
