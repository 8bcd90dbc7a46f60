"""Peak memory of a process while it takes GRPO steps at a vocabulary of 151k, against TRL. Loading is left out.

TRL runs without Liger: its kernels need Triton, which there is none of on a CPU.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.environments import SCRATCH, trl_python
from bench.results import Figure, Findings
from bench.workers import TRL, Worker, ours
from bench.workload import step_config

VOCABULARY = 151_936


def run(options: Any) -> Findings:
    found, runs = Findings(), options.runs_or(1, 1)
    config = step_config("4M", 20, 64, 4, 8, options.threads, vocabulary=VOCABULARY)
    config["scratch"] = str(SCRATCH / "trl")
    peaks: dict[str, list[float]] = {"coterie": [], "trl": []}
    for _ in range(runs):
        for name in peaks:
            worker = ours(name, config) if name == "coterie" else Worker(name, trl_python(), TRL, config)
            with worker:
                last = [worker.ask("step") for _ in range(2)][-1]
                peaks[name].append(last["peak_mib"])
    mine, theirs = (statistics.median(peaks[name]) for name in ("coterie", "trl"))
    found.rows.append({"vocabulary": VOCABULARY, "coterie MiB": mine, "trl MiB": theirs, "ratio": theirs / mine})
    found.figures.append(Figure("peak memory of a step against TRL, vocabulary 151k", theirs / mine, None, runs))
    found.notes.append("4 prompts x 8 rollouts of 64 tokens; all is counted: Python, model, gradients, Adam's state")
    found.detail["peaks"] = peaks
    return found
