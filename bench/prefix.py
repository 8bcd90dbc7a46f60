"""The shared-prefix training forward on and off: policy.score forward and backward, in one process, taking turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.results import Figure, Findings, spread
from bench.workload import model_folder

BARS = {
    (256, 64, 8): 4.0, (1024, 64, 8): 5.5, (1024, 256, 8): 3.0, (4096, 256, 8): None,
    (256, 64, 16): None, (1024, 64, 16): None, (1024, 256, 16): None, (4096, 256, 16): None,
}  # fmt: skip


def run(options: Any) -> Findings:
    import torch

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec

    found = Findings()
    if "shared_prefix" not in ModelSpec.model_fields:
        return Findings(skipped="ModelSpec has no field shared_prefix")
    torch.set_num_threads(options.threads)
    reuse_freed_memory()  # as a run does
    folder = str(model_folder("4M", 8192))
    policies = {on: CausalLM.load(ModelSpec(name=folder, shared_prefix=on)) for on in (False, True)}
    for (prompt, completion, group), bar in BARS.items():
        setting = f"{prompt}:{completion} G={group}"
        if not options.wants(setting) or (options.quick and bar is None):
            continue
        rollouts = _rollouts(prompt, completion, group)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        logp: dict[bool, Any] = {}
        runs = options.runs_or(15 if prompt < 1024 else 5 if prompt < 4096 else 2, 3)
        for number in range(runs + 1):
            for on, policy in policies.items():
                policy.model.zero_grad(set_to_none=True)
                began = time.perf_counter()
                logp[on] = policy.score(rollouts)["logp"]
                logp[on].mean().backward()
                if number:  # the first is a warm-up
                    seconds[on].append(time.perf_counter() - began)
        off, on_ = (statistics.median(seconds[k]) for k in (False, True))
        gap = float((logp[True] - logp[False]).detach().abs().max())
        slope = max(
            float((a.grad - b.grad).abs().max())
            for a, b in zip(*(p.model.parameters() for p in policies.values()), strict=True)
        )
        tokens = group * (prompt + completion) / (prompt + group * completion)
        found.rows.append(
            {"setting": setting, "off s": off, "on s": on_, "ratio": off / on_, "token ratio": tokens,
             "max |Δ logp|": gap, "max |Δ gradient|": slope}
        )  # fmt: skip
        found.detail[setting] = {("on" if k else "off"): spread(v) for k, v in seconds.items()}
        found.figures.append(Figure(f"shared prefix on/off, fp32, {setting}", off / on_, bar, runs))
    found.notes.append("4M-parameter model, one group; token ratio: tokens run through the model without over with")
    found.notes.append(f"off: transformers' own layers, a row a rollout; on: ours, compiled functions {_compiled()}")
    return found


def _compiled() -> str:
    from coterie import native

    return "used" if native.missing() is None else f"not used ({native.missing()})"


def _rollouts(prompt: int, completion: int, group: int) -> Any:
    """One group of random tokens, every decision taken."""
    import torch

    from coterie.rollouts import Prompt, Rollouts, Sampling

    torch.manual_seed(prompt + completion)
    tokens = torch.randint(3, 90, (group, completion))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    columns: dict[str, Any] = {"groups": torch.zeros(group, dtype=torch.int64), "tokens": tokens, "mask": mask}
    ids = tuple(torch.randint(3, 90, (prompt,)).tolist())
    return Rollouts([Prompt(ids)], columns, Sampling(max_tokens=completion))
