"""How a step's time grows with prompts, group size, completion length and vocabulary, one at a time."""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.results import Figure, Findings
from bench.workers import ours
from bench.workload import step_config

BASE = {"prompts": 8, "group": 8, "completion": 64, "vocabulary": 1024}
AXES = {
    "prompts": (4, 8, 16, 32), "group": (4, 8, 16, 32), "completion": (32, 64, 128, 256),
    "vocabulary": (1024, 4096, 16384),
}  # fmt: skip


def run(options: Any) -> Findings:
    found, runs = Findings(), options.runs_or(3, 2)
    for axis, values in AXES.items():
        if not options.wants(axis):
            continue
        points = []
        for value in values[:3] if options.quick else values:
            shape = {**BASE, axis: value}
            config = step_config(
                "4M", 64, shape["completion"], shape["prompts"], shape["group"], options.threads,
                vocabulary=shape["vocabulary"],
            )  # fmt: skip
            with ours("growth", config) as worker:
                worker.ask("step")
                steps = [worker.ask("step") for _ in range(runs)]
            medians = {key: statistics.median(s[key] for s in steps) for key in ("seconds", "generate", "learn")}
            points.append((value, medians["seconds"]))
            found.rows.append({"axis": axis, "value": value, **medians, "s over value": medians["seconds"] / value})
            found.detail[f"{axis}={value}"] = steps
        (low, first), (high, last) = points[0], points[-1]
        exponent = math.log(last / first) / math.log(high / low)
        found.figures.append(Figure(f"growth exponent of a step in {axis}", exponent, 1.15, runs, at_most=True))
    found.notes.append(f"4M-parameter model, prompt 64; else {BASE}. Exponent 1 is linear, from first to last value")
    return found
