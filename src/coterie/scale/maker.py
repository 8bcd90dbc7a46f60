"""A worker beside the trainer: it holds a run of its own that never learns, and rolls out or grades."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import complete
from coterie.errors import PolicyError
from coterie.grading import score
from coterie.hardware import use_threads
from coterie.metrics import Collector, collect
from coterie.recipe import Recipe, resolve
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.scale.direct import Layout, Pair, Place, Where, difference, gpu_of, layout, reason
from coterie.scale.tickets import Ticket
from coterie.scale.weights import unpack


@dataclass(frozen=True)
class Job:
    """Groups that are rolled out together, at a step's settings. `first` is the place of the first in its batch."""

    number: int
    tickets: tuple[Ticket, ...]
    step: int
    round: int
    first: int


@dataclass
class Made:
    """What became of a job. `weights` is the step whose weights took the decisions."""

    job: Job
    weights: int
    rollouts: Rollouts
    counted: dict[str, float]
    """What a step counts, by name, added up over jobs."""
    notes: list[str]
    recorded: Collector
    seconds: float
    """That workers took for it."""


def written(text: str) -> Recipe:
    """A recipe from its text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        return resolve(file=path)


class Worker:
    """Rolls out (`make`) or grades (`grade`). One that only grades has no weights."""

    def __init__(self) -> None:
        self.run: Run
        self.weights = -1
        self.pair: Pair | None = None

    def prepare(self, recipe: str, grades: bool) -> Where:
        """Load what the recipe names. Where this worker is."""
        import ray

        resolved = written(recipe)
        use_threads(resolved.settings.threads)
        self.run = build(resolved, to_train=False)
        self.run.optimizer = None  # type: ignore[assignment]  # it never learns
        if grades:
            for part in ("model", "engine", "_split", "_shared"):
                if part in vars(self.run.policy):
                    setattr(self.run.policy, part, None)
        else:
            self.run.rewards.close()
            self.run.rewards.ahead.functions = []  # others grade
        gpu = None if grades else gpu_of(self.run.policy.device)
        return Where(ray.get_runtime_context().get_node_id(), gpu)

    def load(self, step: int, version: int, expected: int, *buckets: np.ndarray) -> None:
        """Take over the trainer's weights after `step`, and see that they are the same to the last bit."""
        if unpack(buckets, self.run.policy.state_dict()) != expected:
            raise PolicyError(
                f"the weights of step {step} did not arrive as they were sent",
                hint="the rollout worker's model is not the trainer's: look at model.dtype and model.lora",
            )
        self.run.policy.version, self.weights = version, step

    def receive(self, place: Place, step: int, version: int, sent: Layout) -> str | None:
        """Take them over as `load` does, straight from the trainer. Why it could not be, None if it could: what there
        is of weights is then of no use until others were loaded.
        """
        state = self.run.policy.state_dict()
        differs = difference(sent, layout(state))
        if differs is not None:
            raise PolicyError(
                f"the rollout worker's weights are not the trainer's: {differs}",
                hint="look at model.dtype and model.lora",
            )
        import ray

        try:
            if self.pair is None or self.pair.place != place:
                self.pair = None  # the one before ends first
                device = self.run.policy.device if place.backend == "nccl" else torch.device("cpu")
                self.pair = Pair(place, 1, ray.util.get_node_ip_address(), device, threading.Event())
            self.pair.receive(version, state)
        except RuntimeError as error:  # of torch.distributed, which has no narrower class for a closed connection
            pair, self.pair = self.pair, None
            if pair is not None:
                pair.close()
            return reason(error)
        self.run.policy.version, self.weights = version, step
        return None

    @torch.no_grad()
    def make(self, job: Job) -> tuple[Made, int]:
        """Roll a job out. All rollouts, and their number."""
        run, recorded, began = self.run, Collector(), time.perf_counter()
        with collect(recorded):
            rollouts = complete(run, [t.prompt for t in job.tickets], [t.key for t in job.tickets], job.step)
        rollouts = rollouts.to(torch.device("cpu"))
        return self._made(job, rollouts, recorded, self.weights, began), len(rollouts)

    @torch.no_grad()
    def grade(self, made: Made) -> Made:
        """The job with what its rollouts earned."""
        recorded, job, began = Collector(), made.job, time.perf_counter()
        with collect(recorded):
            scored = score(self.run, made.rollouts, job.step, job.round, Clock(), job.first)
        done = self._made(job, scored, recorded, made.weights, began)
        done.seconds += made.seconds
        done.counted = {n: done.counted.get(n, 0.0) + made.counted.get(n, 0.0) for n in done.counted | made.counted}
        done.notes = [*made.notes, *done.notes]
        return done

    def _made(self, job: Job, rollouts: Rollouts, recorded: Collector, weights: int, began: float) -> Made:
        counted, notes = dict(self.run.metrics), list(self.run.notes)
        made = Made(job, weights, rollouts, counted, notes, recorded, time.perf_counter() - began)
        recorded.mask = None
        self.run.metrics, self.run.notes = {}, []
        return made


def jobs_of(tickets: Sequence[Ticket], each: int, step: int, round_: int, number: int, first: int = 0) -> list[Job]:
    """Tickets cut into jobs of at most `each`, numbered from `number`; the first ticket has place `first`."""
    cuts = range(0, len(tickets), each)
    return [Job(number + i, tuple(tickets[at : at + each]), step, round_, first + at) for i, at in enumerate(cuts)]


def join(parts: Sequence[Made], run: Any) -> Rollouts:
    """The rollouts of several jobs as one table; what was counted, said and recorded goes to the run."""
    from coterie.metrics import merge

    for part in parts:
        for name, value in part.counted.items():
            run.metrics[name] = run.metrics.get(name, 0.0) + value
        run.notes += part.notes
        merge(part.recorded)
    return Rollouts.concat([part.rollouts for part in parts]).to(run.policy.device)
