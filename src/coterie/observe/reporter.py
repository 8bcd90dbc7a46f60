"""Everything a run shows and saves, behind the three calls the loop makes: note, step, checkpoint."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from coterie import methods
from coterie.checkpoint import CheckpointStore
from coterie.clock import Clock
from coterie.observe import curves, pictures, report, rollout_store, samples, transcripts, writers
from coterie.observe.metrics import MetricsLog
from coterie.observe.progress import Progress
from coterie.observe.run_dir import RunDir
from coterie.policies.transformers_policy import TransformersPolicy
from coterie.rollouts import Rollouts
from coterie.run import Run


class Reporter:
    """Metrics, progress, rollouts and checkpoints of one run directory."""

    def __init__(self, directory: RunDir, run: Run, *, quiet: bool = False) -> None:
        settings = run.settings
        self.directory, self.stopping = directory, False
        self.log = MetricsLog(directory.metrics)
        self.checkpoints = CheckpointStore(directory.checkpoints, keep=settings.checkpoint.keep)
        self.title = f"{methods.spoken(run.recipe.method)} on {run.task.name}"
        self.progress = Progress(settings.steps, run.step, quiet=quiet, title=self.title)
        self.writers = writers.open_writers(settings.log.writers, directory.path, self.title)
        self.rollouts_every = settings.log.rollouts_every

    def note(self, text: str) -> None:
        self.progress.note(text)

    def step(self, run: Run, batch: Rollouts | None, clock: Clock) -> None:
        """Record a finished step (or, at step 0, where the run starts from)."""
        seconds = {f"time/{name}": s for name, s in clock.seconds.items()} | {"time/step": clock.total()}
        decisions = run.metrics.get("tokens/decisions", 0.0)
        system = {"system/rss_gib": peak_memory_gib()}
        if decisions:
            system["tokens/per_second"] = decisions / clock.total()
        if run.workers.restarts:
            system["workers/restarts"] = float(run.workers.restarts)
        row: dict[str, Any] = {"step": run.step, "version": run.policy.version, **run.metrics, **seconds, **system}
        self.log.append(row)
        self.progress.update(run.step, row)
        for text in run.notes:
            self.note(text)
        run.notes.clear()
        for writer in self.writers:
            writer.write(run.step, row)
        every = self.rollouts_every
        if every and (run.step == 1 or run.step % every == 0 or run.step == run.settings.steps):
            self._record(run, batch)
            for agent in run.others:
                self._record(agent, agent.batch)

    def _record(self, run: Run, batch: Rollouts | None) -> None:
        """Write the rollouts of a policy, with what the update made of them."""
        shown = batch if batch is not None else run.seen
        if shown is None:
            return
        prompts = [run.policy.decode(p.tokens) for p in shown.prompts]
        if run.task.latent is not None:
            shown = replace(shown, texts=[pictures.view(sample, run.task.latent) for sample in shown.texts])
        pieces = run.policy.decision_texts(shown)
        about = {
            "decisions": run.policy.decisions,
            "sampling": shown.sampling.plain(),
            "reward_weights": run.reward_weights,
        }
        if isinstance(run.policy, TransformersPolicy):
            about["vocabulary"] = run.policy.vocabulary
        file = self.directory.rollout_file(run.step, run.name)
        rollout_store.write(file, shown, prompts, token_texts=pieces, about=about)

    def checkpoint(self, run: Run) -> None:
        if samples.pictured(run):
            samples.draw(run, self.directory.samples / f"step-{run.step:06d}.png")
        if run.task.world is not None:
            transcripts.write(run, self.directory.samples / f"step-{run.step:06d}.json")
        self.checkpoints.save(run.step, run.save)
        if run.stage is not None:
            run.stage.kept(self.checkpoints.oldest())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show progress; the first Ctrl-C finishes the step and saves, a second one stops at once."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            self.note("stopping after this step; press Ctrl-C again to stop at once (the last checkpoint stays)")

        try:
            before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals can only be caught on the main thread
            before = {}
        try:
            with self.progress:
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for writer in self.writers:
                writer.close()

    def draw(self) -> None:
        """Curves and report from what is on disk."""
        curves.draw(MetricsLog(self.directory.metrics).read(), self.directory.curves, title=self.title)
        report.write(self.directory.path)


def peak_memory_gib() -> float:
    """The most memory this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
