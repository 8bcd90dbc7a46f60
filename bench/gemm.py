"""What share of the machine's own matrix-product rate training and decoding reach, by the products they cannot avoid.

The rate is measured in the same run, on products of the model's widest shape. Training counts 6 operations a parameter
and token that goes through the model, decoding 2 (embeddings left out, attention not counted, so the share is a lower
bound).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.results import Figure, Findings, spread
from bench.workload import SIZES, model_folder

CASES = (("4M", 256, 8), ("100M", 256, 2))


def run(options: Any) -> Findings:
    import torch

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec
    from coterie.rollouts import Prompt, Sampling

    found, runs = Findings(), options.runs_or(3, 2)
    torch.set_num_threads(options.threads)
    reuse_freed_memory()  # as a run does
    for size, length, count in CASES[:1] if options.quick else CASES:
        if not options.wants(size):
            continue
        policy = CausalLM.load(ModelSpec(name=str(model_folder(size, 2048))))
        embeddings = {id(p) for m in (policy.model.get_input_embeddings(),) for p in m.parameters()}
        parameters = sum(p.numel() for p in policy.model.parameters() if id(p) not in embeddings)
        policy.engine.forbid = policy.engine.stop_ids
        prompts = [Prompt(tuple(torch.randint(3, 90, (length,)).tolist()), {}, i) for i in range(count)]
        seeds = [list(range(8)) for _ in prompts]
        rate = _rate(SIZES[size]["width"], runs)
        rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=64))

        def learn(policy: Any = policy, rollouts: Any = rollouts) -> None:
            policy.model.zero_grad(set_to_none=True)
            policy.score(rollouts)["logp"].mean().backward()

        def decode(policy: Any = policy, prompts: Any = prompts, seeds: Any = seeds) -> None:
            policy.rollout(prompts, seeds, Sampling(max_tokens=64))

        fed = count * (length + 8 * 64)
        for name, call, work in (("training", learn, 6 * fed), ("decode", decode, 2 * fed)):
            seconds = _seconds(call, runs)
            took, needed = statistics.median(seconds), work * parameters
            share = needed / took / rate
            found.rows.append({"setting": f"{size} {name}", "s": took, "GFLOP": needed / 1e9,
                               "GEMM GFLOP/s": rate / 1e9, "share": share})  # fmt: skip
            found.figures.append(Figure(f"share of the GEMM rate, {name}, {size} 256:64", share, None, runs))
            found.detail[f"{size} {name}"] = spread(seconds)
    if options.wants("product"):
        _product(found, options.runs_or(30, 5))
    found.notes.append("decode includes the prefill; float32; prompt 256, 8 rollouts of 64 tokens a prompt")
    return found


def _seconds(call: Callable[[], None], runs: int) -> list[float]:
    call()
    out = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        out.append(time.perf_counter() - began)
    return out


def _rate(width: int, runs: int) -> float:
    """Operations a second of a product with 4096 rows and the MLP's shape, by the faster of torch's libraries."""
    import torch

    from coterie.policies.products import times

    x, w = torch.randn(4096, width), torch.randn(4 * width, width)
    each = [_seconds(lambda f=f: f(x, w), max(5, runs)) for f in (torch.nn.functional.linear, times)]  # type: ignore[misc]
    return 2 * 4096 * width * 4 * width / min(map(statistics.median, each))


def _product(found: Findings, runs: int) -> None:
    """A linear layer's product in a training forward: as `policies/products` makes it, and as torch does."""
    import torch

    from coterie.policies.products import times

    x, weight = torch.randn(1024, 256), torch.randn(1024, 256)
    calls = (lambda: times(x, weight), lambda: x @ weight.T)
    seconds = [[_seconds(call, 1)[0] for call in calls] for _ in range(runs)]
    ratio = statistics.median(plain / ours for ours, plain in seconds)
    found.rows.append({"setting": "product 1024x256x1024", "s": statistics.median(s[0] for s in seconds)})
    found.figures.append(Figure("a linear layer's product against torch's own", ratio, None, runs))
