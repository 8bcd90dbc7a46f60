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

import torch
from torch import Tensor

from coterie.errors import CoterieError, RunError
from coterie.scale.direct import Layout, Line, Snapshot, Switchboard, Where, gpu_of, layout
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
FAILURES = 3
"""Times in a row that weights could not be sent straight to a worker before that is not tried any more."""
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
    where: Where | None = None
    """Known once it has loaded its model."""
    line: Line | None = None
    """Through which it gets weights straight from the trainer."""
    refused: int = -1
    """Number of the weights that could not be sent straight to it."""


@dataclass
class _Task:
    """What an actor is at: preparing (no job), making or grading."""

    actor: _Actor
    since: float
    job: Any = None
    made: Any = None
    """Reference to the rollouts, where they are made and being graded."""
    straight: bool = False
    """Whether it takes weights straight from the trainer."""


@dataclass
class _Weights:
    number: int = -1
    step: int = 0
    version: int = 0
    expected: int = 0
    buckets: list[Any] = field(default_factory=list)
    """In the object store; empty where nobody has needed them there."""
    snapshot: Snapshot | None = None
    """For those that take them straight from the trainer."""
    layout: Layout = ()


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
        self.said: list[str] = []
        """How weights travel: each way once."""
        self.fallbacks = 0
        """Times that a worker got weights through the object store because they could not be sent straight."""
        self.failed = 0
        """Those in a row."""
        self.here = ray.get_runtime_context().get_node_id()
        self.switchboard: Switchboard | None = None
        self._told: set[str] = set()
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
        store, which is shared memory on one machine, or straight to each maker.
        """
        with self.lock:
            self.weights.buckets = []  # the new ones may then lie in their memory
            new = _Weights(self.weights.number + 1, step, version)
            if any(self._is_direct(actor) for actor in self.actors):
                old = self.weights.snapshot
                new.snapshot = Snapshot() if old is None or old.read else old
                new.snapshot.take(state)
                new.layout = layout(state)
            else:
                self._put(new, packer, state)
            self.weights = new

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
            self._dismiss(actor)

    def _dismiss(self, actor: _Actor) -> None:
        self.ray.kill(actor.handle)
        self._hang_up(actor)

    def _hang_up(self, actor: _Actor) -> None:
        line, actor.line = actor.line, None
        if line is not None:
            line.close()

    # Weights

    def _is_direct(self, actor: _Actor) -> bool:
        """Whether weights go straight to this one: on its machine the object store is shared memory."""
        if actor.kind != "roll" or self.failed >= FAILURES or self.scale.sync == "objects":
            return False
        return self.scale.sync == "direct" or (actor.where is not None and actor.where.node != self.here)

    def _put(self, weights: _Weights, packer: Packer, state: Mapping[str, Tensor]) -> None:
        weights.buckets = [self.ray.put(bucket) for bucket in packer.pack(state)]
        weights.expected = packer.digest

    def _load(self, actor: _Actor) -> None:
        """Have it take the current weights."""
        w, actor.weights = self.weights, self.weights.number
        if w.snapshot is not None and self._is_direct(actor) and actor.refused != w.number:
            line = self._line(actor, w.snapshot)
            self._tell(f"weights go straight from the trainer to rollout workers ({line.place.backend})")
            self._give(actor, actor.handle.receive.remote(line.place, w.step, w.version, w.layout), None)
            self.tasks[actor.busy].straight = True
            line.send(w.version, w.snapshot)
            return
        if not w.buckets and w.snapshot is not None:
            self._put(w, Packer(), w.snapshot.state)
        if self.scale.sync == "auto" and actor.where is not None and actor.where.node == self.here:
            self._tell("weights go to rollout workers on this machine through Ray's object store")
        self._give(actor, actor.handle.load.remote(w.step, w.version, w.expected, *w.buckets), None)

    def _line(self, actor: _Actor, snapshot: Snapshot) -> Line:
        """The one to this worker: nccl where each of the two has a GPU of its own, else gloo."""
        device = next(iter(snapshot.state.values())).device
        gpu = actor.where.gpu if actor.where is not None else None
        if gpu is None or gpu_of(device) in (None, gpu):
            device = torch.device("cpu")
        if actor.line is None:
            if self.switchboard is None:
                self.switchboard = Switchboard(self.ray.util.get_node_ip_address())
            actor.line = self.switchboard.line("gloo" if device.type == "cpu" else "nccl", device)
        return actor.line

    def _received(self, actor: _Actor, why: str | None) -> None:
        """It has tried to take weights straight from the trainer. If it could not, they go through the object store."""
        if why is None:
            self.failed = 0
            return
        if actor.line is not None and actor.line.error is not None:
            why += f"; the trainer: {actor.line.error}"
        self._hang_up(actor)
        with self.lock:
            actor.refused, actor.weights = actor.weights, -1
            self.failed += 1
            self.fallbacks += 1
        self._tell("weights that cannot be sent straight to a rollout worker go through the object store", why)
        if self.failed == FAILURES:
            self._tell(f"{FAILURES} times in a row; from now on weights only go through the object store", why)

    def _tell(self, text: str, why: str = "") -> None:
        if text not in self._told:
            self._told.add(text)
            with self.lock:
                self.said.append(f"{text}: {why}" if why else text)

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
                    if actor.weights < self.weights.number:
                        self._load(actor)
                        continue
                    job = self.waiting.popleft()
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
        if isinstance(answer, Where):
            task.actor.where = answer
        elif task.straight:
            self._received(task.actor, answer)
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
        self._dismiss(task.actor)
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
