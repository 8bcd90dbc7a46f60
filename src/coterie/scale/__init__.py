"""Several processes that train one policy: the same loop in each, its costly work split (see `coterie.workers`).

The loop knows nothing of this. A run is started by `team`, which is one process unless the recipe or torchrun says
otherwise.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from coterie.columns import SHOWN
from coterie.errors import RecipeError, RunError
from coterie.wiring import wanted
from coterie.workers import Alone

if TYPE_CHECKING:
    from coterie.recipe import Recipe
    from coterie.run import Run
    from coterie.scale.processes import Team

T = TypeVar("T")


def with_team(recipe: Recipe, take_part: Callable[[Alone], T]) -> T:
    """Call `take_part` as one of a run's workers. Where trainers that were started here die, it is called again with
    new ones, `scale.restarts` times at most: it goes on from the last checkpoint then.
    """
    from coterie.scale.processes import Lost

    restarts, most = 0, recipe.settings.scale.restarts
    while True:
        try:
            with team(recipe) as workers:
                workers.restarts += restarts
                return take_part(workers)
        except Lost as lost:
            of_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1  # which starts its own
            if of_torchrun or not lost.died or most == 0:
                raise
            if restarts == most:
                raise RunError(f"{lost.message}, after {most} restarts (scale.restarts)", hint=lost.hint) from lost
            restarts += 1
            print(f"warning: {lost.message}; restart {restarts} of {most} from the last checkpoint", file=sys.stderr)
        gc.collect()  # the policy of the run that was lost


@contextmanager
def team(recipe: Recipe) -> Iterator[Alone]:
    """The workers of a run, this process one of them: those that torchrun started, or `scale.train_workers` started
    here. When it ends, so do they.
    """
    on_ray = recipe.settings.scale.engine == "ray"
    under_torchrun = int(os.environ.get("WORLD_SIZE", "1"))
    size = max(under_torchrun, recipe.settings.scale.train_workers)
    if size == 1 and not on_ray:
        yield Alone()
        return
    if under_torchrun > 1 and recipe.settings.scale.train_workers not in (1, under_torchrun):
        raise RecipeError(
            f"scale.train_workers is {recipe.settings.scale.train_workers}, and torchrun started {under_torchrun}",
            hint="leave scale.train_workers out: under torchrun it is as many as were started",
        )
    if recipe.policies:
        raise RecipeError(
            "several policies train in one process, or each in a run of its own",
            where="policies",
            hint="scale.train_workers=1, without torchrun; or apart.path=FOLDER apart.train=[NAME]",
        )
    strategy = recipe.single["rollout.strategy"]
    if strategy.instance is not None:
        raise RecipeError(
            f"rollout.strategy={strategy.name} remembers earlier rollouts, and several workers would each remember "
            "their own",
            hint="scale.train_workers=1, or rollout.strategy=plain",
        )
    if "objective.imitation" in recipe.single:
        raise RecipeError(
            "objective.imitation learns from demonstrations that are not shared out among several workers",
            hint="scale.train_workers=1, or leave objective.imitation out",
        )
    _check_sharding(recipe)
    if on_ray:
        with _on_ray(recipe, under_torchrun) as alone_or_not:
            yield alone_or_not
        return
    from coterie.scale.processes import Crew

    crew = None if under_torchrun > 1 else Crew(recipe, size)
    try:
        with _together(recipe, crew) as workers:
            yield workers
    finally:
        if crew is not None:
            crew.end()


@contextmanager
def _together(recipe: Recipe, crew: Team | None) -> Iterator[Alone]:
    """This process as one of those that train."""
    from coterie.scale.processes import Processes

    workers = Processes(recipe.settings.scale, crew)
    try:
        with workers.talking():
            yield workers
    finally:
        workers.close()


@contextmanager
def _on_ray(recipe: Recipe, under_torchrun: int) -> Iterator[Alone]:
    """This process as the first trainer of a Ray cluster."""
    if under_torchrun > 1:
        raise RecipeError("scale.engine=ray starts its own trainers", hint="start it without torchrun")
    if recipe.settings.offline.rollouts is not None:
        raise RecipeError("recorded rollouts need no rollout workers", hint="scale.engine=torchrun, or leave it out")
    from coterie.scale.cluster import Cluster
    from coterie.scale.processes import check_functions

    check_functions(recipe)
    cluster = Cluster(recipe)
    try:
        if cluster.trainers is None:
            workers = Alone()
            workers.cluster = cluster
            yield workers
        else:
            with _together(recipe, cluster.trainers) as workers:
                workers.cluster = cluster
                yield workers
    finally:
        cluster.close()


def _check_sharding(recipe: Recipe) -> None:
    from coterie.scale.sharded import ELEMENTWISE

    optimizer = recipe.single["optimizer"].piece.slug
    if recipe.settings.scale.shard and optimizer not in ELEMENTWISE:
        raise RecipeError(
            f"optimizer={optimizer} looks at whole weights, and with scale.shard each process has a share of them",
            hint="optimizer=adamw, or scale.shard=false",
        )
    if recipe.settings.scale.shard and (shown := wanted(recipe, "policy", "objective") & SHOWN):
        raise RecipeError(
            f"the objective reads '{min(shown)}', for which some rollouts go through the whole model again, and with "
            "scale.shard all processes go through it in step",
            hint="scale.shard=false",
        )


def join(run: Run, workers: Alone, checkpoint: Path | None = None) -> Run:
    """Make a run one of a team: everyone begins from the first one's checkpoint and weights."""
    if workers.size > 1:
        if workers.rank == 0:
            workers.together(checkpoint)
        for parameter in run.policy.trainable_parameters():
            parameter.data.copy_(workers.first(parameter.data))
        if not run.started:
            run.learner.adopt(run.optimizer)
    if run.settings.scale.engine == "ray":
        from coterie.scale.away import Ahead, Elsewhere, InStep

        if workers.cluster is None:
            run.away = Elsewhere()
        else:
            run.away = (Ahead if run.settings.scale.max_staleness else InStep)(run, workers.cluster.pool)
    elif run.asked:
        run.notes.append(f"{len(run.asked)} groups that were asked for and did not arrive are left out")
    return run


def follow(recipe: Recipe, workers: Alone) -> Run:
    """Take part in the run that rank 0 leads: nothing is shown, nothing written."""
    from coterie.build import build
    from coterie.loop import train

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # the first one decides when all stop
            signal.signal(number, signal.SIG_IGN)
    checkpoint = workers.together(None)[0]
    run = join(build(recipe, checkpoint, workers=workers), workers)
    try:
        train(run, Silent())  # type: ignore[arg-type]
    finally:
        run.rewards.close()
    return run


class Silent:
    """The reporter of a process that only takes part."""

    stopping = False

    def note(self, text: str) -> None:
        pass

    def step(self, run: Run, batch: Any, clock: Any) -> None:
        run.notes.clear()

    def checkpoint(self, run: Run) -> None:
        run.learner.state(run.optimizer)  # the first one asks all for their shares
