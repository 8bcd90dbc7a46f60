"""What it saves that the update's first forward takes its products from generation: on and off, taking turns."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from bench.results import Figure, Findings, spread
from bench.workload import model_folder

SETTINGS = (("4M", 20, 8), ("4M", 256, 8), ("100M", 64, 2))
"""Model, tokens of a prompt, prompts."""
LIMIT = 2**30


def run(options: Any) -> Findings:
    import torch

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec
    from coterie.rollouts import Prompt, Sampling

    found = Findings()
    torch.set_num_threads(options.threads)
    reuse_freed_memory()  # as a run does
    for size, length, count in SETTINGS:
        setting = f"{size} {length}:64"
        if not options.wants(setting) or (options.quick and size == "100M"):
            continue
        policy = CausalLM.load(ModelSpec(name=str(model_folder(size, 2048))))
        policy.engine.forbid = policy.engine.stop_ids
        rng = random.Random(0)
        prompts = [Prompt(tuple(rng.randrange(3, 60) for _ in range(length)), {}, i) for i in range(count)]
        seeds = [list(range(8 * i, 8 * i + 8)) for i in range(count)]

        def step(limit: int, policy: Any = policy, prompts: Any = prompts, seeds: Any = seeds) -> list[float]:
            marks = [time.perf_counter()]
            with policy.kept.keeping(limit):
                rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=64))
            marks.append(time.perf_counter())
            policy.model.zero_grad(set_to_none=True)
            policy.score(rollouts)["logp"].mean().backward()
            marks.append(time.perf_counter())
            policy.kept.forget()
            return [marks[1] - marks[0], marks[2] - marks[1], marks[2] - marks[0]]

        step(LIMIT), step(0)
        runs = options.runs_or(7, 3)
        sides = {"on": [], "off": []}  # type: dict[str, list[list[float]]]
        for _ in range(runs):
            for side, limit in (("off", 0), ("on", LIMIT)):
                sides[side].append(step(limit))
        medians = {
            side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in sides.items()
        }
        row: dict[str, Any] = {"setting": setting}
        for side, (generate, learn, whole) in medians.items():
            row |= {f"{side} generate": generate, f"{side} learn": learn, f"{side} s": whole}
        ratio = medians["off"][2] / medians["on"][2]
        found.rows.append(row | {"ratio": ratio})
        found.figures.append(Figure(f"a step without kept products over one with them, {setting}", ratio, None, runs))
        found.detail[setting] = {side: spread([r[2] for r in rows]) for side, rows in sides.items()}
    found.notes.append("8 rollouts a prompt; generation, scoring and backward pass, without an optimizer step")
    return found
