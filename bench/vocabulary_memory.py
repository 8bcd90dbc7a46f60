"""Peak memory of a process while it takes GRPO steps at a vocabulary of 151k, against TRL. Loading is left out.

TRL makes log-probs in chunks by itself. With Liger only kernels of its layers change (TRL refuses Liger's fused loss),
here in Triton's interpreter, for a CPU has no other: that takes minutes a step.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.environments import SCRATCH, liger_path, trl_python
from bench.results import Figure, Findings
from bench.workers import TRL, Worker, ours
from bench.workload import step_config

VOCABULARY = 151_936


def run(options: Any) -> Findings:
    found, runs = Findings(), options.runs_or(1, 1)
    config = step_config("4M", 20, 64, 4, 8, options.threads, vocabulary=VOCABULARY)
    config["scratch"] = str(SCRATCH / "trl")
    peaks: dict[str, list[float]] = {"coterie": [], "trl": [], "trl-liger": []}
    for number in range(runs):
        for name in peaks:
            if name == "coterie":
                worker = ours(name, config)
            elif name == "trl":
                worker = Worker(name, trl_python(), TRL, config)
            elif number == 0 and not options.quick:
                with_it = {**config, "liger": str(liger_path())}
                worker = Worker(name, trl_python(), TRL, with_it, {"TRITON_INTERPRET": "1"})
            else:
                continue
            with worker:
                peaks[name].append([worker.ask("step") for _ in range(2)][-1]["peak_mib"])
    middle = {name: statistics.median(each) for name, each in peaks.items() if each}
    mine = middle.pop("coterie")
    for name, theirs in middle.items():
        found.rows.append({"TRL": name, "vocabulary": VOCABULARY, "coterie MiB": mine, "TRL MiB": theirs,
                           "ratio": theirs / mine})  # fmt: skip
        what = "TRL with Liger" if name == "trl-liger" else "TRL"
        figure = Figure(f"peak memory of a step against {what}, vocabulary 151k", theirs / mine, None, len(peaks[name]))
        found.figures.append(figure)
    found.notes.append("4 prompts x 8 rollouts of 64 tokens; all is counted: Python, model, gradients, Adam's state")
    found.detail["peaks"] = peaks
    return found
