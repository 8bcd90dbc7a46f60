"""Decoding with compiled layers against decoding without: seconds of the processor for a call, and for compiling.

Seconds of the processor and not of the clock, so that a machine that others use too gives the same figures; with one
thread the two are the same on a machine of one's own.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

from bench.results import Figure, Findings, spread
from bench.workload import model_folder

CASES = (("4M", 20, 8, 8), ("4M", 20, 1, 8))


def run(options: Any) -> Findings:
    import torch
    from torch._inductor.utils import fresh_cache

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec
    from coterie.rollouts import Prompt, Sampling

    found, runs = Findings(), options.runs_or(9, 3)
    torch.set_num_threads(options.threads)
    torch._inductor.config.compile_threads = 1  # in this process, so that its seconds are seen
    reuse_freed_memory()  # as a run does
    for size in dict.fromkeys(case[0] for case in CASES):
        policies = {
            name: CausalLM.load(ModelSpec(name=str(model_folder(size, 2048)), compile_decode=name == "compiled"))
            for name in ("eager", "compiled")
        }
        for policy in policies.values():
            policy.engine.forbid = policy.engine.stop_ids
        with fresh_cache():
            for number, (_, length, count, group) in enumerate(c for c in CASES if c[0] == size):
                prompts = [Prompt(tuple(torch.randint(3, 90, (length,)).tolist()), {}, i) for i in range(count)]
                seeds = [list(range(group)) for _ in prompts]

                def decode(name: str, prompts: Any = prompts, seeds: Any = seeds, policies: Any = policies) -> float:
                    began = time.process_time()
                    policies[name].rollout(prompts, seeds, Sampling(max_tokens=64))
                    return time.process_time() - began

                began = _seconds()
                decode("compiled")
                first = _seconds() - began
                decode("eager")
                pairs = [(decode("eager"), decode("compiled")) for _ in range(runs)]
                eager, compiled = (statistics.median(side) for side in zip(*pairs, strict=True))
                setting = f"{size}, {count * group} rows of {length}:64"
                if number == 0:
                    found.detail[f"compiling, {size}"] = first - compiled
                    found.notes.append(f"{size}: compiling took {first - compiled:.0f} seconds of one core, once")
                found.rows.append({"setting": setting, "eager s": eager, "compiled s": compiled})
                ratio = statistics.median(plain / ours for plain, ours in pairs)
                found.figures.append(Figure(f"eager decoding over compiled, {setting}", ratio, None, runs))
                found.detail[setting] = {
                    name: spread(side) for name, side in zip(policies, zip(*pairs, strict=True), strict=True)
                }
    return found


def _seconds() -> float:
    """Of the processor, by this process and the compilers it ran."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(p.ru_utime + p.ru_stime for p in parts)
