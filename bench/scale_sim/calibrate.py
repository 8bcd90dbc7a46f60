"""What decode, prefill and training cost on this machine, and calls of other shapes to hold the simulator against.

The simulated time of a call is a sum: each cost times how often it is paid. How often is the time simulated with that
cost at one second and the others at none; so the costs are found by least squares over calls that calibrate. Those they
are held against are others. Both are timed in turns, on one thread, in processor time, and the least of several times
counts: what else the machine does then takes little part in it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.scale_sim.local import LocalCosts, generation
from bench.scale_sim.simulate import Group, Work, learning
from bench.workload import model_folder

DECODING = ("step", "row", "slot", "shared", "prefill", "encode", "move")
LEARNING = ("learn", "pair", "update")
ROWS = 256
"""Decoded at once where a call says nothing else."""


@dataclass(frozen=True)
class Call:
    """Lengths of the rollouts of each group, after prompts of one length. Without `rows`, it is learned from."""

    name: str
    groups: list[list[int]]
    prompt: int = 64
    rows: int | None = ROWS

    def simulated(self, costs: LocalCosts) -> float:
        if self.rows is not None:
            return generation(LocalCosts(**{**vars(costs), "rows": self.rows}), self.prompt, self.groups)
        work = Work(len(self.groups), len(self.groups[0]), self.prompt)
        return learning(costs, work, [Group(i, g) for i, g in enumerate(self.groups)], 1)


def long_tail(groups: int, size: int, seed: int, mean: float, most: int) -> list[list[int]]:
    """Lengths with a long tail: log-normal, cut at `most`."""
    rng = random.Random(seed)
    return [[min(most, 1 + int(mean * rng.lognormvariate(-0.5, 1.0))) for _ in range(size)] for _ in range(groups)]


def even(groups: int, size: int, seed: int, most: int) -> list[list[int]]:
    """Each length up to `most` equally likely."""
    rng = random.Random(seed)
    return [[rng.randint(1, most) for _ in range(size)] for _ in range(groups)]


def two_kinds(groups: int, size: int, seed: int, short: int, long: int, share: float) -> list[list[int]]:
    """That share of them is long, the others are short."""
    rng = random.Random(seed)
    return [[long if rng.random() < share else short for _ in range(size)] for _ in range(groups)]


STAIRS = [16 * i for i in range(1, 9)]
CALIBRATION = [
    Call("one prompt", [[1]], 64),
    Call("prompts", [[1]] * 8, 512),
    Call("8 rows", [[64] * 8], 64),
    Call("32 rows", [[64] * 8] * 4, 64),
    Call("128 rows", [[64] * 8] * 16, 64),
    Call("longer", [[256] * 8] * 4, 64),
    Call("longer prompts", [[32] * 8] * 8, 512),
    Call("rows leave", [STAIRS] * 8, 64),
    Call("rows come, all at once", [[24] * 8] * 8, 64, 16),
    Call("rows come, one by one", [[n // 2 for n in STAIRS]] * 12, 64, 24),
    Call("rows come to longer ones", [[200] + [20] * 7] * 8, 64, 16),
    Call("rows come beside much longer ones", [[320] * 2 + [12] * 6] + [[12] * 8] * 16, 64, 16),
    Call("learn, few", [[64] * 8] * 2, 64, None),
    Call("learn, many", [[64] * 8] * 8, 64, None),
    Call("learn, longer", [[160] * 8] * 4, 64, None),
    Call("learn, longer prompts", [[32] * 8] * 4, 512, None),
]
JUDGED = [
    Call("decode 6x8, all 96 tokens", [[96] * 8] * 6),
    Call("decode 12x8, long tail", long_tail(12, 8, 1, 48, 256)),
    Call("decode 12x8, long tail, 32 rows", long_tail(12, 8, 2, 48, 256), 64, 32),
    Call("decode 24x8, long tail, 64 rows", long_tail(24, 8, 3, 48, 256), 64, 64),
    Call("decode 16x4, long tail, 24 rows, prompt 16", long_tail(16, 4, 5, 64, 256), 16, 24),
    Call("decode 6x16, long tail, 48 rows, prompt 256", long_tail(6, 16, 6, 80, 384), 256, 48),
    Call("decode 12x8, even, 40 rows, prompt 128", even(12, 8, 7, 128), 128, 40),
    Call("decode 12x8, a quarter long, 32 rows", two_kinds(12, 8, 8, 16, 160, 0.25), 64, 32),
    Call("decode 24x8, a few very long, 24 rows", two_kinds(24, 8, 11, 10, 400, 0.02), 64, 24),
    Call("learn 5x8, all 96 tokens", [[96] * 8] * 5, 64, None),
    Call("learn 6x8, long tail", long_tail(6, 8, 4, 48, 128), 64, None),
    Call("learn 4x16, long tail, prompt 256", long_tail(4, 16, 9, 48, 192), 256, None),
    Call("learn 12x4, even, prompt 24", even(12, 4, 10, 128), 24, None),
]


def policy() -> Any:
    import torch

    from coterie.hardware import reuse_freed_memory
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec

    torch.set_num_threads(1)
    reuse_freed_memory()
    found = CausalLM.load(ModelSpec(name=str(model_folder("4M", 2048))))
    found.engine.forbid = found.engine.stop_ids  # rows end by their budget alone
    return found


def measured(policy: Any, calls: list[Call], runs: int) -> list[float]:
    """Seconds of processor time of each, the least in `runs` rounds over all."""
    ready = [generating(policy, call) if call.rows is not None else updating(policy, call) for call in calls]
    for run in ready:
        run()
    least, order, rng = [math.inf] * len(calls), list(range(len(calls))), random.Random(0)
    for _ in range(runs):
        rng.shuffle(order)  # neither kind of calls has the quieter minutes
        for i in order:
            began = time.process_time()
            ready[i]()
            least[i] = min(least[i], time.process_time() - began)
    return least


def generating(policy: Any, call: Call) -> Callable[[], None]:
    """A request a rollout, since budgets are kept a request; the engine encodes equal prompts once."""
    from coterie.rollout.engines.base import Request
    from coterie.rollouts import Sampling

    requests = [
        Request(prompt, (8 * number + row,), Sampling(max_tokens=length))
        for number, (prompt, lengths) in enumerate(zip(_prompts(call), call.groups, strict=True))
        for row, length in enumerate(lengths)
    ]

    def generate() -> None:
        policy.engine.max_rows = call.rows
        policy.generate(requests)

    return generate


def updating(policy: Any, call: Call) -> Callable[[], None]:
    import torch

    from coterie.rollouts import Prompt, Sampling

    prompts = [Prompt(ids, {}, i) for i, ids in enumerate(_prompts(call))]
    seeds = [list(range(len(g))) for g in call.groups]
    policy.engine.max_rows = ROWS
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=max(map(max, call.groups))))
    lengths = torch.tensor([n for g in call.groups for n in g])
    cut = torch.arange(rollouts["mask"].shape[1]) < lengths.unsqueeze(-1)
    rollouts = rollouts.with_columns(mask=rollouts["mask"] & cut, lengths=lengths)

    def learn() -> None:
        policy.model.zero_grad(set_to_none=True)
        policy.score(rollouts)["logp"].mean().backward()

    return learn


def _prompts(call: Call) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(3, 90) for _ in range(call.prompt)) for _ in call.groups]


def costs_of(calls: list[Call], seconds: list[float]) -> LocalCosts:
    """The costs with which the calls' simulated seconds are theirs, in parts of each, as nearly as can be."""
    from scipy.optimize import nnls

    found: dict[str, float] = {}
    for names, learned in ((DECODING, False), (LEARNING, True)):
        mine = [(c, s) for c, s in zip(calls, seconds, strict=True) if (c.rows is None) == learned]
        table = [[call.simulated(LocalCosts(**{name: 1.0})) / took for name in names] for call, took in mine]
        found |= dict(zip(names, nnls(np.array(table), np.ones(len(mine)))[0].tolist(), strict=True))
    return LocalCosts(**found)
