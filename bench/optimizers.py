"""Optimizers beside torch's AdamW on a model of 30M parameters: bytes of state, and seconds of a step.

Each is measured in a process of its own, `python -m bench.optimizers NAME`, which prints a line of JSON: the bytes of
its state after the steps, the most memory the steps added to weights and gradient, and the seconds of each. What a
closure costs is the model's: here it returns at once, so that the optimizer's own work is left.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.results import Figure, Findings, spread

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "sgd": ("sgd", {}),
    "spam": ("spam", {}),
    "spam, density 0.25": ("spam", {"density": 0.25}),
    "cosmos, rank 64": ("cosmos", {}),
    "mezo": ("mezo", {}),
    "sparse mezo": ("sparse_mezo", {}),
    "zo-sgd-mmt": ("zeroth_order", {"momentum": 0.9}),
    "zo-sgd-cons": ("zeroth_order", {"conservative": True}),
    "zo-adam": ("zeroth_order", {"rule": "adam"}),
    "zo-ranksgd, 10 candidates": ("zo_ranksgd", {}),
    "cbo, 8 particles": ("cbo", {}),
    "n-pg-igt": ("n_pg_igt", {}),
    "harpg": ("harpg", {}),
    "hesso": ("hesso", {"period": 10}),
}
BARS = {"mezo": 100.0, "sparse mezo": 100.0, "spam, density 0.25": 1.5, "cosmos, rank 64": 1.5}
"""State of AdamW over its own, at least."""


def run(options: Any) -> Findings:
    found, runs, steps = Findings(), options.runs_or(3, 1), 1 if options.quick else 2
    measured: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES if case == "adamw" or options.wants(case)}
    for _ in range(runs):  # interleaved, so that a busy minute hits all of them
        for case, results in measured.items():
            results.append(_child(case, steps, options.threads))
    bytes_of = {case: statistics.median(r["state"] for r in results) for case, results in measured.items()}
    seconds = {case: statistics.median(statistics.median(r["seconds"]) for r in rs) for case, rs in measured.items()}
    size = measured["adamw"][0]["parameters"]
    for case, results in measured.items():
        peak = statistics.median(r["peak"] for r in results)
        found.rows.append({
            "optimizer": case, "state MiB": bytes_of[case] / 2**20, "bytes a weight": bytes_of[case] / size,
            "added at peak MiB": peak / 2**20, "ms a step": 1e3 * seconds[case],
            "of AdamW": seconds[case] / seconds["adamw"],
        })  # fmt: skip
        found.detail[case] = {
            "state": bytes_of[case], "peak": spread([r["peak"] for r in results]),
            "seconds": spread([statistics.median(r["seconds"]) for r in results]),
        }  # fmt: skip
        if case in BARS:
            ratio = bytes_of["adamw"] / max(bytes_of[case], 1)
            found.figures.append(Figure(f"optimizer state, AdamW over {case}", ratio, BARS[case], runs))
    found.notes.append(
        f"{size / 1e6:.1f}M parameters, float32: a Llama of 8 layers of width 512, vocabulary 8192; the first step, "
        "which makes the state, is not timed. Losses and gradients are given. Add what they cost: 2 losses a step for "
        "mezo, 5 for zo-sgd-cons, 10 for zo-ranksgd, 8 for cbo; 3 gradients for harpg; 1 gradient for the others. The "
        "peak is of memory beyond weights and gradients, as the system saw it"
    )
    return found


def _child(case: str, steps: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.optimizers", case, str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def measure(case: str, steps: int) -> dict[str, Any]:
    import torch

    from coterie import registry

    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in _shapes()]
    for p in parameters:
        p.grad = 1e-3 * torch.randn(p.shape)
    slug, settings = CASES[case]
    optimizer = registry.get("optimizer", slug).bind(settings)({"parameters": parameters})
    asks = getattr(optimizer, "asks", None)
    if asks == "loss":
        for p in parameters:
            p.grad = None
    calls = [0]

    def closure() -> float:
        calls[0] += 1
        return 1.0 + 1e-3 * (calls[0] * 7 % 5)

    before, seconds = _peak(), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.step(closure) if asks else optimizer.step()
        seconds.append(time.perf_counter() - start)
    state = sum(
        v.numel() * v.element_size()
        for kept in optimizer.state.values() for v in kept.values() if isinstance(v, torch.Tensor)
    )  # fmt: skip
    return {
        "parameters": sum(p.numel() for p in parameters), "state": state, "peak": _peak() - before,
        "seconds": seconds[1:],
    }  # fmt: skip


def _shapes() -> list[tuple[int, ...]]:
    width, inner, vocabulary = 512, 1408, 8192
    layer: list[tuple[int, ...]] = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)] + [(width,)] * 2
    return [(vocabulary, width), *(layer * 8), (width,)]


def _peak() -> int:
    """The most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
