"""The processes that train one policy together, as the loop sees them. Here: one alone, with nothing to share.

Every process runs the same loop on the same table. What costs time is split: each rolls out and grades its share of the
prompts, and runs its share of the groups through the model. What looks at the whole batch sees the whole batch.
`coterie.scale` has the workers that are really several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from coterie.clock import Clock
from coterie.learner import Learner
from coterie.metrics import Collector
from coterie.microbatches import microbatches
from coterie.policies.base import Policy
from coterie.rollouts import Rollouts

T = TypeVar("T")


class Away(Protocol):
    """Where rollouts are made and graded, if not by the processes that train."""

    def collect(self, run: Any, step: int, round_: int, count: int, clock: Clock) -> Rollouts | None:
        """`count` groups with what they earned; None where another process of the team asks for them."""

    def state_dict(self) -> list[list[Any]]:
        """What was asked for and is not trained on yet."""


class Alone:
    """One process: all work is its own."""

    rank = 0
    size = 1
    restarts = 0
    """Times that processes which trained have died, and others went on from the last checkpoint."""
    cluster: Any = None
    """Other workers, that roll out and grade; only the first process of a team has them."""

    def share(self, count: int) -> slice:
        """Which of `count` prompts are this process's to roll out and grade."""
        return slice(0, count)

    def rows(self, rollouts: Rollouts) -> Tensor:
        """The rows this process runs through the model: whole groups, about as many tokens as the others. [n] int"""
        return torch.arange(len(rollouts), device=rollouts["groups"].device)

    def together(self, part: T) -> list[T]:
        """The parts of all processes in the order of their ranks."""
        return [part]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes of a tensor that all have in the same shape."""
        return value

    def learner(self, policy: Policy) -> Learner:
        """What gradients run through and the optimizer moves."""
        return Learner(policy)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Put the sum over processes in the place of each parameter's gradient."""

    def first(self, value: Tensor) -> Tensor:
        """The value of rank 0, so that a decision that rests on it is everywhere the same."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is true in some process."""
        return flag


def gather_rollouts(workers: Alone, part: Rollouts | None, device: torch.device) -> Rollouts:
    """The table of all processes' rollouts, groups in the order in which their prompts were shared out."""
    if workers.size == 1:
        assert part is not None
        return part
    moved = None if part is None else part.to(torch.device("cpu"))
    return Rollouts.concat([p for p in workers.together(moved) if p is not None]).to(device)


def own_microbatches(workers: Alone, rollouts: Rollouts, *how: Any) -> list[Tensor]:
    """Row indices of the parts that this process runs through the model, cut as `microbatches` cuts."""
    if workers.size == 1:
        return microbatches(rollouts, *how)
    mine = workers.rows(rollouts)
    return [mine[rows] for rows in microbatches(rollouts.rows(mine), *how)] if len(mine) else []


def gather_metrics(workers: Alone, collector: Collector) -> Collector:
    """What the pieces of all processes recorded, in place."""
    if workers.size > 1:
        plain = (collector.total, collector.count, collector.peaks, collector.lows)
        merge: list[Callable[[Any, Any], Any]] = [lambda a, b: a + b, lambda a, b: a + b, max, min]
        everyone = workers.together(plain)
        for mine, others, join in zip(plain, zip(*everyone, strict=True), merge, strict=True):
            mine.clear()
            for other in others:
                for name, value in other.items():
                    mine[name] = join(mine[name], value) if name in mine else value
    return collector
