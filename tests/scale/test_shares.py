"""Shares of a supervised batch add up to the whole, and shares of an evaluation are put together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_workers import FLOW, TINY, WORLD
from torch import Tensor

from coterie.build import build
from coterie.evaluator import accuracy, evaluate
from coterie.policies.base import WHOLE, Part
from coterie.recipe import resolve
from coterie.run import Run
from coterie.workers import Alone

UNMASKING = [
    "model={kind: masked_diffusion, init: {layers: 1, width: 16, heads: 2, context: 32}}",
    "rollout.max_tokens=8",
]


@pytest.mark.parametrize(("method", "kind"), [("grpo", []), ("flow-grpo", FLOW), ("diffu-grpo", UNMASKING)])
def test_shares_add_up(method: str, kind: list[str]) -> None:
    """Loss and gradient, of shares as unequal as can be."""
    run = build(resolve(method=method, overrides=[*TINY, *kind]))
    policy, task = run.policy, run.task
    rows = [task.train[i] for i in range(7)]
    prompts = [policy.encode(row["prompt"]) for row in rows]
    assert task.reference is not None
    completions = [policy.encode_completion(task.reference(row)) for row in rows]
    if method == "grpo":
        completions[5] = completions[5][:1]  # tokens are what counts, and not rows

    def of(mine: slice, part: Part) -> tuple[Tensor, list[Tensor]]:
        policy.model.zero_grad()
        loss = policy.sft_loss(prompts[mine], completions[mine], 3, part=part)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in policy.trainable_parameters() if p.grad is not None]

    counts: list[int] = []
    loss, gradient = of(slice(None), Part(0, lambda count: counts.append(count) or count))  # type: ignore[func-returns-value]
    assert torch.equal(loss, of(slice(None), WHOLE)[0])
    shares = [of(slice(a, b), Part(a, lambda count: counts[0])) for a, b in ((0, 1), (1, 5), (5, 7))]
    torch.testing.assert_close(sum(s for s, _ in shares), loss)
    for whole, *parts in zip(gradient, *(g for _, g in shares), strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-6)


class OneOfTwo(Alone):
    """One of two workers that are threads."""

    size = 2

    def __init__(self, rank: int, found: list[Any], both: threading.Barrier) -> None:
        self.rank, self.found, self.both = rank, found, both

    def share(self, count: int) -> slice:
        return slice(0, count // 2) if self.rank == 0 else slice(count // 2, count)

    def together(self, part: Any) -> list[Any]:
        self.found[self.rank] = part
        self.both.wait(60)
        everyone = list(self.found)
        self.both.wait(60)
        return everyone


def by_two(make: Callable[[], Run], measure: Callable[[Run, Alone], Any]) -> tuple[list[Any], list[int]]:
    """What each finds, and for how many prompts it was asked."""
    runs, asked = [make(), make()], [0, 0]
    found, both = [None, None], threading.Barrier(2)

    def one(rank: int) -> Any:
        policy: Any = runs[rank].policy
        rollout = policy.rollout

        def counted(prompts: Any, *rest: Any, **more: Any) -> Any:
            asked[rank] += len(prompts)
            return rollout(prompts, *rest, **more)

        policy.rollout = counted
        return measure(runs[rank], OneOfTwo(rank, found, both))

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(one, (0, 1))), asked


@pytest.mark.parametrize("kind", [["evaluation.samples=3"], FLOW, WORLD])
def test_an_evaluation_is_shared_out(kind: list[str]) -> None:
    """Each completes its own prompts alone, and the numbers are those of one process to the last bit."""
    method = "flow-grpo" if kind is FLOW else "grpo"
    recipe = resolve(method=method, overrides=[*TINY, *kind, "evaluation.prompts=5"])
    run = build(recipe)
    alone = evaluate(run.policy, run.task, run.settings)
    assert "eval/accuracy" in alone
    found, asked = by_two(lambda: build(recipe), lambda run, one: evaluate(run.policy, run.task, run.settings, one))
    assert found == [alone, alone]
    if kind is not WORLD:  # which asks turn by turn
        ways = 1 if kind is FLOW else 2  # sampled, and greedy
        assert asked == [2 * ways, 3 * ways]


def test_sampled_accuracy_is_shared_out() -> None:
    recipe = resolve(method="grpo", overrides=[*TINY, "evaluation.prompts=9"])

    def measure(run: Run, one: Alone) -> float:
        return accuracy(run.policy, run.task, run.settings, one, held_out=False, key=1)

    found, asked = by_two(lambda: build(recipe), measure)
    assert found == [measure(build(recipe), Alone())] * 2 and asked == [4, 5]
