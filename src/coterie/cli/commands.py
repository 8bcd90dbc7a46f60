"""`coterie sft`, `eval`, `export` and `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.cli.output import console, newest, print_json, print_metrics
from coterie.errors import RecipeError, RunError
from coterie.recipe import Recipe, resolve


def fine_tune(recipe: Recipe, out: Path, quiet: bool, as_json: bool) -> None:
    """SFT alone: warm_start's settings, then the model in Hugging Face format."""
    from coterie.evaluator import evaluate
    from coterie.run import build
    from coterie.warm_start import warm_start

    _must_be_free(out)
    if recipe.settings.warm_start.steps == 0:
        raise RecipeError("warm_start.steps is 0: there is nothing to do", hint="add warm_start.steps=100")
    run = build(recipe)
    before = evaluate(run.policy, run.task, run.settings)
    metrics = warm_start(run, (lambda text: None) if quiet or as_json else console.print)
    after = evaluate(run.policy, run.task, run.settings)
    run.policy.save(out, merge=True)
    if as_json:
        print_json({"model": str(out), "before": before, "after": after, **metrics})
        return
    print_metrics(metrics | after)
    console.print(f"model       {out}")


def evaluate_target(target: str, arguments: list[str], task: str | None, as_json: bool) -> None:
    """Evaluate a run's last checkpoint on its own task, or any model on a task."""
    from coterie.evaluator import evaluate
    from coterie.run import build

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
    if not metrics:
        raise RecipeError(f"task '{run.task.name}' has no verifier or no held-out problems to evaluate on")
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics)


def export_policy(run_path: Path, out: Path) -> None:
    """Load the last checkpoint as the run would, and write plain Hugging Face format; of several policies each to a
    folder of its name.
    """
    from coterie.policies.diffusers.policy import DiffusersPolicy
    from coterie.run import build

    _must_be_free(out)
    checkpoint = _last(run_path)
    run = build(resolve(file=run_path / "recipe.yaml"), checkpoint, to_train=False)
    for agent in run.agents:
        agent.policy.save(out / agent.name, merge=True)
    loader = "DiffusionPipeline" if isinstance(run.policy, DiffusersPolicy) else "AutoModelForCausalLM"
    console.print(f"model       {out}\nload it with {loader}.from_pretrained('{out}')", markup=False)


def merge_models(models: list[str], ratios: list[float], out: Path) -> None:
    """Linear merges, one model after the other."""
    from coterie.policies.merging import merge

    _must_be_free(out)
    count = merge(models, ratios, out)
    console.print(f"model       {out}\nmerged      {count} parameters of {len(models)} models", markup=False)


def _last(folder: Path) -> Path:
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run directory", hint="give a folder that `coterie train` made")
    checkpoint = newest(folder)
    if checkpoint is None:
        raise RunError("the run has no checkpoint yet", where=str(folder), hint=f"coterie resume {folder}")
    return checkpoint


def _must_be_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty", hint="name another folder")
