"""What decode, prefill and training cost on this machine, and calls of other shapes to hold the simulator against."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.scale_sim.simulate import Costs, Engine, Group, Work, learning
from bench.workload import model_folder

PROMPT = 64


def _policy(threads: int, rows: int) -> Any:
    import torch

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec

    torch.set_num_threads(threads)
    reuse_freed_memory()
    policy = CausalLM.load(ModelSpec(name=str(model_folder("4M", 2048))))
    policy.engine.forbid, policy.engine.max_rows = policy.engine.stop_ids, rows
    return policy


def _requests(groups: list[list[int]], prompt: int) -> Any:
    """A request a rollout, since budgets are kept a request; the engine encodes equal prompts once."""
    from coterie.rollout.engines.base import Request
    from coterie.rollouts import Sampling

    rng, seeds = random.Random(0), iter(range(10**6))
    found = []
    for lengths in groups:
        ids = tuple(rng.randrange(3, 90) for _ in range(prompt))
        found += [Request(ids, (next(seeds),), Sampling(max_tokens=n)) for n in lengths]
    return found


def _seconds(call: Callable[[], Any], runs: int) -> float:
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _learn(policy: Any, groups: list[list[int]], prompt: int) -> Callable[[], None]:
    import torch

    from coterie.rollouts import Prompt, Sampling

    prompts = [Prompt(r.prompt, {}, i) for i, r in enumerate(_requests([[1]] * len(groups), prompt))]
    seeds = [list(range(len(g))) for g in groups]
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=max(map(max, groups))))
    lengths = torch.tensor([n for g in groups for n in g])
    cut = torch.arange(rollouts["mask"].shape[1]) < lengths.unsqueeze(-1)
    rollouts = rollouts.with_columns(mask=rollouts["mask"] & cut, lengths=lengths)

    def learn() -> None:
        policy.model.zero_grad(set_to_none=True)
        policy.score(rollouts)["logp"].mean().backward()

    return learn


def calibrate(threads: int, runs: int) -> Costs:
    policy = _policy(threads, 256)

    def decoding(groups: int, length: int) -> float:
        return _seconds(lambda: policy.generate(_requests([[length] * 8] * groups, PROMPT)), runs)

    counts = (1, 4, 8, 16)
    a_token = np.array([(decoding(n, 65) - decoding(n, 1)) / 64 for n in counts])
    row, step = np.polyfit(8 * np.array(counts), a_token, 1)
    longer = (decoding(8, 257) - decoding(8, 1)) / 256  # rows have 128 tokens on the way, above 32
    cached = max(0.0, (longer - a_token[2]) / (64 * 96))
    prefill = _seconds(lambda: policy.generate(_requests([[1]] * 8, 512)), runs) / (8 * 512)
    batches, work = [[[64] * 8] * 2, [[64] * 8] * 8, [[160] * 8] * 4], Work(1, 8, PROMPT)
    seconds = [_seconds(_learn(policy, groups, PROMPT), runs) for groups in batches]
    table = [[sum(map(work.tokens, groups)), sum(map(work.pairs, groups)), 1.0] for groups in batches]
    learn, pair, update = (max(0.0, float(x)) for x in np.linalg.solve(np.array(table), np.array(seconds)))
    own = float(row - 32 * cached)
    return Costs(float(max(step, 1e-4)), own, prefill, learn, update, 0.0, 256, cached=float(cached), pair=pair)


def long_tail(groups: int, size: int, seed: int, mean: float, most: int) -> list[list[int]]:
    """Lengths with a long tail: log-normal, cut at `most`."""
    rng = random.Random(seed)
    return [[min(most, 1 + int(mean * rng.lognormvariate(-0.5, 1.0))) for _ in range(size)] for _ in range(groups)]


def held_against(costs: Costs, threads: int, runs: int) -> Iterator[tuple[str, float, float]]:
    """(what, seconds measured, seconds simulated) of calls that the calibration did not see."""
    cases = {
        "decode 6x8, 96 tokens, 256 rows": ([[96] * 8] * 6, 256),
        "decode 12x8, long tail, 256 rows": (long_tail(12, 8, 1, 48, 256), 256),
        "decode 12x8, long tail, 32 rows": (long_tail(12, 8, 2, 48, 256), 32),
        "decode 24x8, long tail, 64 rows": (long_tail(24, 8, 3, 48, 256), 64),
    }
    for name, (groups, rows) in cases.items():
        policy = _policy(threads, rows)
        measured = _seconds(lambda p=policy, g=groups: p.generate(_requests(g, PROMPT)), runs)
        engine = Engine(Costs(**{**vars(costs), "rows": rows}), PROMPT)
        for number, lengths in enumerate(groups):
            engine.add(Group(number, lengths))
        while engine.running:
            engine.advance()
        yield name, measured, engine.now
    for name, groups in {
        "learn 5x8, 96 tokens": [[96] * 8] * 5,
        "learn 6x8, long tail": long_tail(6, 8, 4, 48, 128),
    }.items():
        policy = _policy(threads, 256)
        measured = _seconds(_learn(policy, groups, PROMPT), runs)
        work = Work(len(groups), 8, PROMPT)
        yield name, measured, learning(costs, work, [Group(i, g) for i, g in enumerate(groups)], 1)
