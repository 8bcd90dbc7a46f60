"""What is assumed of clusters and of the run on them, and the ways to use them that are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.scale_sim.simulate import Costs, Draw, Outcome, Work, asynchronous, synchronous

GPUS = (8, 32, 128, 512, 1024, 4096)

PARAMETERS = 7e9
FLOPS = 989e12 * 0.4
"""bf16 products of an H200, and the share of them that training reaches"""
MEMORY = 4.8e12 * 0.6
"""bytes a second of its memory, and the share that decoding reaches"""
NETWORK = 50e9
"""bytes a second between GPUs, 400 Gbit/s each"""
CONTEXT_BYTES = 57_344
"""keys and values a token: 28 layers, 4 heads of 128, bf16"""
PROMPT, MEAN, MOST, SIZE = 1024, 2500.0, 16_384, 16
"""tokens of a prompt, of a completion (log-normal, its mean before the cut, and the cut), rollouts a group"""
GROUPS = 1024
"""a step, whatever the number of GPUs"""


def costs(gpus: int) -> Costs:
    """One GPU holds the whole model in bf16, decodes on its own and trains with its weights sharded over all."""
    weights = 2 * PARAMETERS
    context = (PROMPT + MEAN) * CONTEXT_BYTES
    return Costs(
        step=weights / MEMORY,
        row=context / MEMORY + 2 * PARAMETERS / FLOPS,
        prefill=2 * PARAMETERS / FLOPS,
        learn=6 * PARAMETERS / FLOPS,
        update=0.2,
        sync=weights / NETWORK,
        rows=256,
        exchange=3 * weights / NETWORK if gpus > 1 else 0.0,
    )


def lengths(seed: int) -> Draw:
    rng = random.Random(seed)
    return lambda: [min(MOST, 1 + int(MEAN * rng.lognormvariate(-0.5, 1.0))) for _ in range(SIZE)]


def _outcomes(gpus: int, steps: int) -> dict[str, Outcome]:
    mine, work = costs(gpus), Work(GROUPS, SIZE, PROMPT)
    found = {
        "synchronous": synchronous(mine, work, gpus, lengths(0), steps),
        "synchronous, prompts not shared": synchronous(mine, replace(work, shared=False), gpus, lengths(0), steps),
        "partial rollouts": synchronous(mine, work, gpus, lengths(0), 2 * steps, extra=0.5),
    }
    splits = sorted({max(1, round(gpus * share)) for share in (0.5, 0.625, 0.75)})
    for staleness in (1, 4):
        each = [asynchronous(mine, work, g, gpus - g, lengths(0), 4 * steps, staleness) for g in splits]
        found[f"asynchronous, {staleness} late at most"] = min(each, key=lambda o: o.seconds)
    return found


def compared(counts: Sequence[int], steps: int = 2) -> list[dict[str, Any]]:
    """Every way at every number of GPUs; asynchronous ones with the best of three splits of the GPUs."""
    return [
        {
            "gpus": gpus, "mode": mode, "seconds": o.seconds, "rollouts a second": o.trained / o.seconds,
            "versions late": o.stale, "idle share of generation": o.idle,
        }
        for gpus in counts
        for mode, o in _outcomes(gpus, steps).items()
    ]  # fmt: skip
