"""Rollout and reward workers on Ray: given jobs, watched, replaced when they die or hang, and their work done anew."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from coterie.errors import CoterieError, RunError
from coterie.scale.weights import Packer
from coterie.sections import Scale

TRIES = 3
"""Times that one job is begun before it is taken to be what kills the workers."""
LOADING = 900.0
"""Seconds that a worker has at the least to load its model or new weights."""
SOON = 60.0
"""Seconds that a job has at the least, however short the others are."""
KNOWN = 8
"""Jobs that are done before one can be called slow; so many of the last ones say how long a job takes."""
LOST = "lost its rollouts"
BLINK = 0.1
"""Seconds after which the pool looks up from its waiting."""


@dataclass
class _Actor:
    kind: str
    handle: Any
    weights: int = -1
    """Number of the weights it was last told to load."""
    busy: Any = None
    """The reference it works at."""


@dataclass
class _Task:
    """What an actor is at: preparing (no job), making or grading."""

    actor: _Actor
    since: float
    job: Any = None
    made: Any = None
    """Reference to the rollouts, where they are made and being graded."""


@dataclass
class _Weights:
    number: int = -1
    step: int = 0
    version: int = 0
    expected: int = 0
    buckets: list[Any] = field(default_factory=list)


class Pool:
    """Makers and graders. `submit` jobs, `next` gives what became of one, in the order in which they are done.

    A thread hands the jobs out, so that workers are busy while the trainer is. It also sees to their health.
    """

    def __init__(self, recipe: str, scale: Scale, gpus: int) -> None:
        import ray

        from coterie.scale.maker import Worker

        self.ray, self.recipe, self.scale = ray, recipe, scale
        self.remote = ray.remote(Worker)
        self.options = {"roll": {"num_cpus": scale.cpus, "num_gpus": gpus}, "grade": {"num_cpus": scale.cpus}}
        self.lock = threading.Condition()
        self.waiting: deque[Any] = deque()
        self.made: deque[tuple[Any, Any]] = deque()
        self.done: deque[Any] = deque()
        self.tries: dict[int, int] = {}
        self.tasks: dict[Any, _Task] = {}
        self.weights = _Weights()
        self.error: CoterieError | None = None
        self.replaced: list[str] = []
        """What was said of each worker that was replaced."""
        self.took: dict[str, deque[float]] = {kind: deque(maxlen=KNOWN) for kind in self.options}
        """Seconds of the last jobs."""
        self.failures = 0
        self.closing = False
        self.numbers = itertools.count()
        kinds = ["roll"] * scale.rollout_workers + ["grade"] * scale.reward_workers
        self.actors = [self._hire(kind) for kind in kinds]
        self.thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
        self.thread.start()

    def publish(self, step: int, version: int, packer: Packer, state: Mapping[str, Tensor]) -> None:
        """These are the weights from now on: each maker loads them before its next job. They go through Ray's object
        store, which is shared memory on one machine.
        """
        with self.lock:
            self.weights.buckets = []  # the new ones may then lie in their memory
            kept = [self.ray.put(bucket) for bucket in packer.pack(state)]
            self.weights = _Weights(self.weights.number + 1, step, version, packer.digest, kept)

    def submit(self, jobs: Sequence[Any]) -> None:
        with self.lock:
            self.waiting.extend(jobs)
            self.lock.notify_all()

    def next(self) -> Any:
        """What became of a job. Waits for one. Raises the error that a worker ended with, if it was not its death."""
        with self.lock:
            while not self.done:
                if self.error is not None:
                    raise self.error
                if not self.thread.is_alive():
                    raise RunError("what hands out the rollouts has ended", hint="coterie resume RUN")
                self.lock.wait(1.0)
            return self.done.popleft()

    def close(self) -> None:
        """End the workers."""
        self.closing = True
        self.thread.join()
        for actor in self.actors:
            self.ray.kill(actor.handle)

    def _hire(self, kind: str) -> _Actor:
        handle: Any = self.remote.options(**self.options[kind]).remote()
        actor = _Actor(kind, handle)
        self._give(actor, handle.prepare.remote(self.recipe, kind == "grade"), None)
        return actor

    def _give(self, actor: _Actor, reference: Any, job: Any, made: Any = None) -> None:
        actor.busy = reference
        self.tasks[reference] = _Task(actor, time.monotonic(), job, made)

    def _work(self) -> None:
        try:
            while not self.closing:
                self._hand_out()
                for reference in self._ready():
                    self._finish(reference, self.tasks.pop(reference))
                self._see_who_hangs()
        except CoterieError as error:
            self._fail(error)
        except self.ray.exceptions.RayError as error:
            self._fail(RunError(f"the Ray cluster does not answer: {_first_line(error)}", hint="coterie resume RUN"))

    def _ready(self) -> list[Any]:
        """What workers have done. Waits a little for it, or for new jobs where none is under way."""
        if self.tasks:
            return self.ray.wait(list(self.tasks), timeout=BLINK)[0]
        with self.lock:
            if not self.waiting:
                self.lock.wait(BLINK)
        return []

    def _hand_out(self) -> None:
        with self.lock:
            for actor in self.actors:
                if actor.busy is not None:
                    continue
                if actor.kind == "grade" and self.made:
                    job, made = self.made.popleft()
                    self._give(actor, actor.handle.grade.remote(made), job, made)
                elif actor.kind == "roll" and self.waiting and self.weights.number >= 0:
                    w, job = self.weights, self.waiting.popleft()
                    if actor.weights < w.number:
                        sent = actor.handle.load.remote(w.step, w.version, w.expected, *w.buckets)
                        actor.weights = w.number
                        self._give(actor, sent, None)
                        self.waiting.appendleft(job)
                    else:
                        made, count = actor.handle.make.options(num_returns=2).remote(job)
                        self._give(actor, count, job, made)

    def _finish(self, reference: Any, task: _Task) -> None:
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.ObjectLostError:  # they went with the machine of the worker that made them
            return self._again(task, LOST)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, self.ray.exceptions.ObjectLostError):
                return self._again(task, LOST)
            raise (
                cause
                if isinstance(cause, CoterieError)
                else RunError(f"a {_name(task.actor)} worker failed: {_first_line(cause)}", hint="coterie resume RUN")
            ) from error
        except self.ray.exceptions.RayError as error:
            return self._replace(task, f"died ({type(error).__name__})")
        task.actor.busy = None
        self.failures = 0
        if task.job is None:
            return
        self.took[task.actor.kind].append(time.monotonic() - task.since)
        with self.lock:
            if task.actor.kind == "roll":
                self.made.append((task.job, task.made))
            else:
                self.tries.pop(task.job.number, None)
                self.done.append(answer)
                self.lock.notify_all()

    def _see_who_hangs(self) -> None:
        now = time.monotonic()
        for reference, task in list(self.tasks.items()):
            limit = self._limit(task)
            if now - task.since > limit:
                del self.tasks[reference]
                self._replace(task, f"did not answer for {limit:.3g} s")

    def _limit(self, task: _Task) -> float:
        """Seconds that a worker has. One that takes much longer than others for a job that is new to all is slow; the
        second time it may be the job.
        """
        if task.job is None:
            return max(self.scale.timeout, LOADING)
        took = self.took[task.actor.kind]
        if len(took) < KNOWN or task.job.number in self.tries:
            return self.scale.timeout
        return min(self.scale.timeout, max(SOON, self.scale.slow * statistics.median(took)))

    def _replace(self, task: _Task, what: str) -> None:
        """Put a new worker in the place of one that is gone, and do what it was at again."""
        self.ray.kill(task.actor.handle)
        self.failures += 1
        if self.failures > TRIES * len(self.actors):
            raise RunError(
                f"workers end as soon as they begin; the last {what}",
                hint="look at Ray's logs (ray logs); is there memory enough for scale.rollout_workers?",
            )
        with self.lock:
            self.replaced.append(f"a {_name(task.actor)} worker {what}; another takes its place")
        self.actors[self.actors.index(task.actor)] = self._hire(task.actor.kind)
        self._again(task, what)

    def _again(self, task: _Task, what: str) -> None:
        task.actor.busy = None
        if task.job is None:
            return
        number = task.job.number
        self.tries[number] = self.tries.get(number, 1) + 1
        if self.tries[number] > TRIES:
            raise RunError(
                f"a {_name(task.actor)} worker {what}, the {TRIES}th in a row with the same prompts",
                hint="coterie resume RUN tries anew; is a worker out of memory, or scale.timeout too short?",
            )
        with self.lock:
            if task.actor.kind == "grade" and what != LOST:
                self.made.appendleft((task.job, task.made))
            else:
                self.waiting.appendleft(task.job)

    def _fail(self, error: CoterieError) -> None:
        with self.lock:
            self.error = error
            self.lock.notify_all()


def _name(actor: _Actor) -> str:
    return "rollout" if actor.kind == "roll" else "reward"


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
