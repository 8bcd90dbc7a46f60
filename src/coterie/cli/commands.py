"""`coterie compare`, `sft`, `eval`, `export` and `merge`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coterie.checkpoint import CheckpointStore, is_disk_error
from coterie.cli.output import console, print_json, print_metrics, table
from coterie.errors import CoterieError, RecipeError, RunError
from coterie.recipe import Recipe, resolve


def compare_methods(
    names: Sequence[str],
    recipes: Mapping[tuple[str, int], Recipe],
    metric: str | None,
    out: Path,
    quiet: bool,
    as_json: bool,
) -> bool:
    """A table of each method against the first, with the paired differences. False where it was stopped."""
    from coterie import compare

    compare.folders(names)
    results = compare.runs(recipes, out, quiet)
    if results is None:
        console.print("stopped; the same command goes on")
        return False
    chosen, sides = compare.measure(
        {(n, s): results[n, s] for n in names for _, s in recipes if (n, s) in results}, metric
    )
    found = compare.summary(chosen, sides, sorted({seed for _, seed in recipes}))
    compare.write(out, found, results)
    if as_json:
        print_json(found)
        return True
    rows = table("method", "at the end", f"against {found['against']}", "over the run", f"against {found['against']}")
    for row in found["methods"]:
        rows.add_row(row["method"], *(cell for part in ("end", "over") for cell in _compared(row[part])))
    console.print(f"{chosen}: means of {len(found['seeds'])} seeds; differences seed by seed, with 95% intervals\n")
    console.print(rows)
    console.print(f"\ncurves      {out / 'comparison.png'}\nnumbers     {out / 'comparison.json'}", markup=False)
    return True


def _compared(part: Mapping[str, Any]) -> tuple[str, str]:
    if "difference" not in part:
        return f"{part['mean']:.4g}", ""
    low, high = part["interval"] or (None, None)
    within = "" if low is None else f" ({low:+.3g} to {high:+.3g})"
    return f"{part['mean']:.4g}", f"{part['difference']:+.3g}{within}"


def fine_tune(recipe: Recipe, out: Path, quiet: bool, as_json: bool) -> None:
    """SFT alone: warm_start's settings, then the model in Hugging Face format."""
    from coterie.build import build
    from coterie.evaluator import evaluate
    from coterie.warm_start import warm_start

    _must_be_free(out)
    if recipe.settings.warm_start.steps == 0:
        raise RecipeError("warm_start.steps is 0: there is nothing to do", hint="add warm_start.steps=100")
    run = build(recipe)
    before = evaluate(run.acting, run.task, run.settings)
    metrics = warm_start(run, (lambda text: None) if quiet or as_json else console.print)
    after = evaluate(run.acting, run.task, run.settings)
    with _saving(out):
        for agent in run.agents:
            agent.policy.save(out / agent.name, merge=True)
    if as_json:
        print_json({"model": str(out), "before": before, "after": after, **metrics})
        return
    print_metrics(metrics | after)
    console.print(f"model       {out}")


def evaluate_target(target: str, arguments: list[str], task: str | None, as_json: bool) -> None:
    """Evaluate a run's last checkpoint on its own task, or any model on a task."""
    from coterie.build import build
    from coterie.evaluator import evaluate

    folder = Path(target)
    values: dict[str, Any] = {} if task is None else {"task": task}
    if (folder / "recipe.yaml").is_file():
        checkpoint = _last(folder)
        recipe = resolve(file=folder / "recipe.yaml", overrides=arguments, values=values)
        run = build(recipe, checkpoint, to_train=False)
    else:
        if task is None and not any(a.startswith("task") for a in arguments):
            raise RecipeError(f"on which task is '{target}' to be evaluated?", hint="add --task NAME")
        run = build(resolve(overrides=arguments, values={"model": target, **values}))
    metrics = evaluate(run.acting, run.task, run.settings)
    for agent in run.agents:
        agent.rewards.close()
    if run.stage is not None and not run.stage.plays:
        raise RecipeError(
            f"{target} trained {' and '.join(agent.name for agent in run.agents)} on what another run plays",
            hint="evaluate the run that plays: its checkpoints have all policies",
        )
    if not metrics:
        raise RecipeError(
            f"task '{run.task.name}' has no verifier or no held-out problems to evaluate on",
            hint="task.verifier=exact, or numeric, … ; task.held_out=0.1",
        )
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics)


def export_policy(run_path: Path, out: Path) -> None:
    """Load the last checkpoint as the run would, and write plain Hugging Face format; of several policies each to a
    folder of its name.
    """
    from coterie.build import build

    _must_be_free(out)
    checkpoint = _last(run_path)
    run = build(resolve(file=run_path / "recipe.yaml"), checkpoint, to_train=False)
    with _saving(out):
        for agent in run.agents:
            agent.policy.save(out / agent.name, merge=True)
    for agent in run.agents:
        folder = out / agent.name
        console.print(f"model       {folder}\n{_use(agent.policy, folder)}", markup=False)


def _use(policy: Any, folder: Path) -> str:
    """What to do with a saved policy of this kind."""
    from coterie.policies.diffusers.policy import DiffusersPolicy
    from coterie.policies.transformers_policy import TransformersPolicy

    if isinstance(policy, TransformersPolicy):
        return f"load it with {policy.spec.auto_class}.from_pretrained('{folder}')"
    if isinstance(policy, DiffusersPolicy):
        return f"load it with DiffusionPipeline.from_pretrained('{folder}')"
    return f"go on with it: --model {folder}"


def merge_models(models: list[str], ratios: list[float], out: Path) -> None:
    """Linear merges, one model after the other."""
    from coterie.policies.merging import merge

    _must_be_free(out)
    with _saving(out):
        count = merge(models, ratios, out)
    console.print(f"model       {out}\nmerged      {count} parameters of {len(models)} models", markup=False)


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Turn what the disk does not take into a RunError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CoterieError) or not is_disk_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"the model could not be written: {reason}",
            where=str(folder),
            hint="name a folder you may write to, on a disk with free space",
        ) from error


def _last(folder: Path) -> Path:
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run directory", hint="give a folder that `coterie train` made")
    store = CheckpointStore(folder / "checkpoints")
    checkpoint = store.latest()
    if checkpoint is None and store.ignored:
        raise RunError("no checkpoint of the run is complete", where=str(folder), hint=f"coterie resume {folder}")
    if checkpoint is None:
        raise RunError("the run has no checkpoint yet", where=str(folder), hint=f"coterie resume {folder}")
    for damaged in store.ignored:
        print(f"note: {damaged.name} is damaged, this is {checkpoint.name}", file=sys.stderr)
    return checkpoint


def _must_be_free(folder: Path) -> None:
    """Make the folder before any work is done for it. Raises RunError where it cannot be made or something is in it."""
    with _saving(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists and is not empty", hint="name another folder")
        folder.mkdir(parents=True, exist_ok=True)
