"""The loop: draw, roll out, score, credit, select, update. One screen; everything else is a piece."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from coterie.clock import Clock
from coterie.collect import collect
from coterie.evaluator import evaluate
from coterie.grading import teach
from coterie.metrics import Collector
from coterie.metrics import collect as gather
from coterie.observe.reporter import Reporter
from coterie.observe.summary import describe
from coterie.provide import provide
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.stage import Stage
from coterie.update import update
from coterie.warm_start import warm_start
from coterie.wiring import wanted


@contextmanager
def settled() -> Iterator[None]:
    """Meanwhile Python's collector passes over what stands by now: libraries, the model and the data. Looking through
    that takes longer than a small step.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@settled()
def train(run: Run, reporter: Reporter) -> None:
    """Run until the recipe's steps are done, or until the reporter says that the user wants to stop."""
    if not run.started:
        begin(run, reporter)
    stopping = run.workers.any(reporter.stopping)
    while run.step < run.settings.steps and not stopping:
        clock, step = Clock(), run.step
        for agent in run.agents:  # one, unless several policies train together; all collect before any is updated
            prepare(agent, step, clock)
        for agent in run.agents:
            learn(agent, step, clock)
        if run.stage is not None:
            together(run, run.stage)
        if due(run.step, run.settings.evaluation.every, run.settings.steps):
            measure(run, clock)
        reporter.step(run, run.batch, clock)
        stopping = run.workers.any(reporter.stopping)
        if due(run.step, run.settings.checkpoint.every, run.settings.steps) or stopping:
            reporter.checkpoint(run)


def prepare(run: Run, step: int, clock: Clock) -> None:
    """Everything before the update of one policy; leaves what it learns from in `run.batch`."""
    recorded = Collector()
    run.metrics = {}
    with gather(recorded):  # by the pieces before the update, which has a collector of its own
        batch = collect(run, step, clock)
        batch = delay(run, batch) if run.learns else None
        if batch is not None:
            batch = select(run, credit(run, batch, step, clock), step, clock)
    run.metrics |= recorded.means()
    run.batch = batch


def learn(run: Run, step: int, clock: Clock) -> None:
    """The update of one policy, and what is said of the step."""
    if run.batch is not None:
        update(run, run.batch, step, clock)
        if run.needs_reference():
            run.reference().after_step(step + 1)
    teach(run)
    run.step += 1
    run.metrics = describe(run.seen, run.batch) | run.metrics


def together(run: Run, stage: Stage) -> None:
    """The metrics of all policies in the run that leads: each one's as agent/NAME/…, and what sums them up."""
    stage.learned(run.step)
    rewards = [a.metrics["reward/mean"] for a in run.agents if "reward/mean" in a.metrics]
    found = {f"agent/{agent.name}/{name}": value for agent in run.agents for name, value in agent.metrics.items()}
    found["tokens/decisions"] = sum(a.metrics.get("tokens/decisions", 0.0) for a in run.agents)
    if rewards:
        found["reward/mean"] = sum(rewards) / len(rewards)
    for agent in run.others:
        run.notes += agent.notes
        agent.notes.clear()
    run.metrics = found | stage.measured()


def measure(run: Run, clock: Clock) -> None:
    """Held-out evaluation, by everybody who acts."""
    with clock.phase("eval"):
        if run.stage is not None:
            run.stage.gather(run.step)
        run.metrics |= evaluate(run.acting, run.task, run.settings, run.workers)


def begin(run: Run, reporter: Reporter) -> None:
    """Before the first step: the warm start, the reference it is measured against, and where we stand."""
    clock = Clock()
    run.metrics = {}
    if run.stage is not None:
        run.stage.claim()
    with clock.phase("warm_start"):
        run.metrics |= warm_start(run, reporter.note)
        for agent in run.agents:
            for parameter in agent.policy.trainable_parameters():
                parameter.data.copy_(run.workers.first(parameter.data))
            agent.learner.adopt(agent.optimizer)
    for agent in run.agents:
        agent.started = True
        if agent.needs_reference():
            agent.reference()
        if agent.needs_start():
            agent.start()
        if wanted(agent.recipe, "teacher"):
            agent.teacher()  # what cannot be loaded is said now
    measure(run, clock)
    reporter.step(run, None, clock)
    reporter.checkpoint(run)


@torch.no_grad()
def credit(run: Run, batch: Rollouts, step: int, clock: Clock) -> Rollouts:
    """One baseline, then the modifiers in order: each reads columns and returns the new advantages."""
    batch = provide(run, batch, "credit", step, clock)
    for piece in (run.recipe.single["credit.baseline"], *run.recipe.chain["credit.modifiers"]):
        batch = batch.with_columns(advantages=run.workers.first(piece(run.table(batch, step), step)))
    if wanted(run.recipe, "history"):
        run.history.remember(batch)
    return batch


@torch.no_grad()
def select(run: Run, batch: Rollouts, step: int, clock: Clock) -> Rollouts:
    """Gradient weights: one everywhere, then what each selection piece makes of them."""
    batch = provide(run, batch, "selection.weights", step, clock)
    for piece in run.recipe.chain["selection.weights"]:
        batch = batch.with_columns(weights=run.workers.first(piece(run.table(batch, step), step)))
    return batch if "weights" in batch else batch.with_columns(weights=run.table(batch, step)["weights"])


def delay(run: Run, batch: Rollouts | None) -> Rollouts | None:
    """Hold a batch back for `update.staleness` updates."""
    if run.settings.update.staleness == 0:
        return batch
    if batch is not None:
        run.pending.append(batch)
    return run.pending.popleft() if len(run.pending) > run.settings.update.staleness else None


def due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
