"""Start and resume runs from Python; the command line calls these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import ndiff
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.checkpoint import CheckpointStore
from coterie.errors import RunError
from coterie.recipe import Recipe, resolve

if TYPE_CHECKING:
    from coterie.observe.run_dir import RunDir
    from coterie.run import Run
    from coterie.workers import Alone


@dataclass
class Result:
    """A run that ended: where it is, its metrics a step, and whether it was interrupted."""

    path: Path
    metrics: list[dict[str, Any]]
    interrupted: bool
    policy: Any
    policies: dict[str, Any] = field(default_factory=dict)
    """Where several train together, all of them by name; `policy` is then the first."""
    leads: bool = True
    """Whether this process wrote the run; of several that train together one does."""

    @property
    def last(self) -> dict[str, Any]:
        return self.metrics[-1] if self.metrics else {}


def train(
    *,
    model: Any = None,
    task: Any = None,
    method: str | None = None,
    rewards: Sequence[Callable[..., Any] | str | Mapping[str, Any]] | None = None,
    rollouts: str | Path | Sequence[str | Path] | None = None,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train a policy and return the run.

    model: a path or hub id, or a mapping (name, dtype, lora, init). task: a task's name, a data file, or a mapping
    {name: settings}. method: 'grpo', 'dapo+kl' … rewards: functions f(completions, **columns) -> list[float | None].
    rollouts: recorded rollouts or preference pairs to learn from (files, folders, globs, run directories); then nothing
    is generated, and a task is only evaluated on.
    Other settings by section, rollout={"group_size": 8}, or with dots in a mapping, **{"rollout.group_size": 8}.
    Raises CoterieError with the mend where something is wrong.
    """
    values: dict[str, Any] = dict(settings)
    if model is not None:
        values["model"] = model
    if task is not None:
        values["task"] = task
    if rollouts is not None:
        values["offline.rollouts"] = [str(r) for r in ([rollouts] if isinstance(rollouts, str | Path) else rollouts)]
    resolved = resolve(method=method, file=recipe, values=values, functions=rewards)
    return start(resolved, out, quiet=quiet)


def start(recipe: Recipe, out: str | Path | None = None, *, quiet: bool = False, or_resume: bool = False) -> Result:
    """Make a run directory for a recipe and run it. With `or_resume`, go on with the run at `out` where there is one.

    Raises RunError where that run has another recipe.
    """
    from coterie.build import build
    from coterie.hardware import use_threads
    from coterie.observe.run_dir import RunDir
    from coterie.scale import join, with_team

    use_threads(recipe.settings.threads)
    directory = _begun(recipe, out) if or_resume else None

    def take_part(workers: Alone) -> Result:
        nonlocal directory
        if workers.rank:
            return _follow(recipe, workers)
        if directory is not None:
            with directory.locked():
                return _resume(directory, recipe, workers, quiet)
        run = join(build(recipe, workers=workers), workers)
        directory = RunDir.create(
            out, task=run.task.name, method=recipe.method, recipe=recipe.to_yaml(), seed=recipe.settings.seed
        )
        with directory.locked():
            return _drive(directory, run, quiet)

    return with_team(recipe, take_part)


def _begun(recipe: Recipe, out: str | Path | None) -> RunDir | None:
    """The run of this recipe at `out`, None if it is still to begin."""
    from coterie.observe.run_dir import RunDir

    if out is None:
        raise RunError("which run is to go on?", hint="name its directory: --out RUN")
    directory = RunDir(out)
    if not directory.recipe.is_file():
        return None
    before, now = directory.recipe.read_text(encoding="utf-8").splitlines(), recipe.to_yaml().splitlines()
    other = [line.strip() for line in ndiff(before, now) if line[:1] in "-+"]
    if other:
        raise RunError(
            f"the run was begun with another recipe: {other[0]}",
            where=str(directory.path),
            hint=f"`coterie resume {directory.path}` goes on with its own; or name another directory",
        )
    return directory


def resume(path: str | Path, *, quiet: bool = False, steps: int | None = None, workers: int | None = None) -> Result:
    """Go on from the last checkpoint of a run, exactly as if it had never stopped. `steps` may extend it; `workers` is
    how many processes go on with it, however many there were.

    Raises RunError when there is nothing left to do.
    """
    from coterie.hardware import use_threads
    from coterie.observe.run_dir import RunDir
    from coterie.scale import with_team

    directory = RunDir.open(path)
    directory.check_recipe()
    overrides = [] if steps is None else [f"steps={steps}"]
    if workers is not None:
        overrides.append(f"scale.train_workers={workers}")
    recipe = resolve(file=directory.recipe, overrides=[*overrides, *_engine(directory, workers)])
    use_threads(recipe.settings.threads)
    begun = False

    def take_part(workers: Alone) -> Result:
        nonlocal begun
        if workers.rank:
            return _follow(recipe, workers)
        again, begun = begun, True
        with directory.locked():
            return _resume(directory, recipe, workers, quiet, rewrite=bool(overrides), must_do=not again)

    return with_team(recipe, take_part)


def _engine(directory: RunDir, workers: int | None) -> list[str]:
    """The engine of a run that goes on with another number of trainers: its own, else torchrun."""
    if workers is None or resolve(file=directory.recipe).settings.scale.engine is not None:
        return []
    return ["scale.engine=torchrun"]


def _resume(
    directory: RunDir, recipe: Recipe, crew: Alone, quiet: bool, rewrite: bool = False, must_do: bool = False
) -> Result:
    """Go on from the last checkpoint. `must_do`: it is an error if nothing is left to do."""
    from coterie.build import build
    from coterie.observe.metrics import MetricsLog
    from coterie.scale import join

    store = CheckpointStore(directory.checkpoints, keep=recipe.settings.checkpoint.keep)
    damaged = store.clean()
    latest = store.latest()
    run = build(recipe, latest, workers=crew)
    if must_do and run.step >= recipe.settings.steps:
        raise RunError(
            f"nothing to do: all {recipe.settings.steps} steps are done",
            where=str(directory.path),
            hint="extend it with steps=N, or start a new run",
        )
    if rewrite:
        directory.rewrite_recipe(recipe.to_yaml())
    run.notes += [f"checkpoint {folder.name} is damaged and was set aside" for folder in damaged]
    join(run, crew, latest)
    MetricsLog(directory.metrics).truncate_after(run.step if latest is not None else -1)
    return _drive(directory, run, quiet)


def _follow(recipe: Recipe, workers: Alone) -> Result:
    """Take part in a run that another process leads and writes."""
    from coterie.scale import follow

    run = follow(recipe, workers)
    return Result(Path(), [], run.step < run.settings.steps, run.policy, leads=False)


def _drive(directory: RunDir, run: Run, quiet: bool) -> Result:
    """Run the loop inside a directory that is locked already."""
    from coterie.loop import train as loop
    from coterie.observe.metrics import MetricsLog
    from coterie.observe.reporter import Reporter

    directory.set_status("running", run.step)
    try:
        reporter = Reporter(directory, run, quiet=quiet)
        if run.stage is not None:
            run.stage.stopping = lambda: reporter.stopping
        with reporter.running():
            loop(run, reporter)
    except Exception as error:
        directory.set_status("failed", run.step, str(error) or type(error).__name__)
        raise
    except KeyboardInterrupt:
        directory.set_status("interrupted", run.step)
        raise
    finally:
        for agent in run.agents:
            agent.rewards.close()
    interrupted = run.step < run.settings.steps
    directory.set_status("interrupted" if interrupted else "finished", run.step)
    reporter.draw()
    policies = {agent.name: agent.policy for agent in run.agents if agent.name}
    return Result(directory.path, MetricsLog(directory.metrics).read(), interrupted, run.policy, policies=policies)
