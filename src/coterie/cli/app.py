"""Commands of `coterie`. Heavy modules are imported inside each, so that help and completion answer at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie import __version__
from coterie.errors import RecipeError

app = typer.Typer(
    name="coterie",
    help="Group-relative policy optimization: every variant, one loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
methods_app = typer.Typer(help="List the named methods, or explain one.", invoke_without_command=True)
tasks_app = typer.Typer(help="List the tasks, or validate one.", invoke_without_command=True)
app.add_typer(methods_app, name="methods")
app.add_typer(tasks_app, name="tasks")


def _complete_method(incomplete: str) -> list[str]:
    from coterie import methods

    head, plus, last = incomplete.rpartition("+")
    return [head + plus + s for s in methods.slugs() if s.startswith(last)]


Arguments = Annotated[
    list[str] | None, typer.Argument(help="A recipe .yaml and/or key=value settings, for example rollout.group_size=8.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Path or hub id of the model.")]
TaskName = Annotated[str | None, typer.Option("--task", "-t", help="A task's name, or a data file.")]
MethodName = Annotated[
    str | None,
    typer.Option("--method", help="Methods joined by '+', for example dapo+kl.", autocompletion=_complete_method),
]
Reward = Annotated[
    list[str] | None, typer.Option("--reward", help="file.py:function or a verifier's name; repeatable.")
]
Recorded = Annotated[
    list[str] | None,
    typer.Option("--rollouts", help="Learn from recorded rollouts or pairs: file, folder, glob, run; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors and the last line.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory (default runs/TASK-METHOD-TIME).")]


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"coterie {__version__}")
        raise typer.Exit()


def _recipe(
    arguments: list[str] | None,
    model: str | None,
    task: str | None,
    method: str | None,
    rewards: list[str] | None = None,
    rollouts: list[str] | None = None,
) -> Any:
    from coterie.recipe import resolve

    files = [a for a in arguments or [] if "=" not in a]
    overrides = [a for a in arguments or [] if "=" in a]
    if len(files) > 1:
        raise RecipeError(f"one recipe at a time, got {', '.join(files)}", hint="settings are written key=value")
    values: dict[str, Any] = {}
    if model is not None:
        values["model"] = model
    if task is not None:
        values["task"] = task
    if rewards:
        values["rewards.functions"] = list(rewards)
    if rollouts:
        values["offline.rollouts"] = list(rollouts)
    return resolve(method=method, file=files[0] if files else None, overrides=overrides, values=values)


def _ended(result: Any, as_json: bool) -> None:
    from coterie.cli.output import print_result

    if result.leads:
        print_result(result, as_json)
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def train(
    arguments: Arguments = None,
    model: Model = None,
    task: TaskName = None,
    method: MethodName = None,
    reward: Reward = None,
    rollouts: Recorded = None,
    out: Out = None,
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with the run at --out where there is one, else begin it.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a policy: coterie train --model M --task T --method dapo steps=200."""
    from coterie.api import start

    recipe = _recipe(arguments, model, task, method, reward, rollouts)
    _ended(start(recipe, out, quiet=quiet or as_json, or_resume=go_on), as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="steps=N extends the run.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on from the last checkpoint of a run, exactly as if it had not stopped."""
    from coterie.api import resume as go_on

    changed: dict[str, int] = {}
    for argument in arguments or []:
        key, _, value = argument.partition("=")
        if key not in ("steps", "scale.train_workers") or not value.isdigit():
            raise RecipeError(
                f"cannot change '{argument}' of a run that has begun",
                hint="only steps=N and scale.train_workers=W; or start a new run",
            )
        changed["workers" if key.startswith("scale") else key] = int(value)
    _ended(go_on(run, quiet=quiet or as_json, **changed), as_json)


@app.command()
def compare(
    arguments: Arguments = None,
    methods: Annotated[str, typer.Option("--methods", help="Two or more, by commas: grpo,dr-grpo,dapo+kl.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method: the seeds from the recipe's upwards.")] = 3,
    metric: Annotated[
        str | None, typer.Option(help="What is compared (default eval/accuracy, or reward/mean).")
    ] = None,
    model: Model = None,
    task: TaskName = None,
    reward: Reward = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the runs and what was found.")] = Path(
        "runs/comparison"
    ),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train with several methods, the same seeds for each, and compare them seed by seed. Goes on where it stopped."""
    from coterie.cli.commands import compare_methods

    names = [name.strip() for name in methods.split(",") if name.strip()]
    recipe = _recipe(arguments, model, task, names[0] if names else None, reward)
    first = recipe.settings.seed
    recipes = {
        (name, seed): _recipe([*(arguments or []), f"seed={seed}"], model, task, name, reward)
        for name in names
        for seed in range(first, first + seeds)
    }
    if not compare_methods(names, recipes, metric, out, quiet or as_json, as_json):
        raise typer.Exit(130)


@app.command()
def sft(
    arguments: Arguments = None,
    model: Model = None,
    task: TaskName = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model.")] = Path("sft-model"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on a task's reference completions: the warm start by itself. Settings: warm_start.*."""
    from coterie.cli.commands import fine_tune

    fine_tune(_recipe(arguments, model, task, None), out, quiet, as_json)


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="Run directory, model folder or hub id.")],
    arguments: Arguments = None,
    task: TaskName = None,
    as_json: Json = False,
) -> None:
    """Held-out accuracy: avg@k, pass@k, maj@k and length with intervals. Settings: evaluation.*, rollout.max_tokens."""
    from coterie.cli.commands import evaluate_target

    evaluate_target(target, arguments or [], task, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
) -> None:
    """Write the last checkpoint's policy in Hugging Face format, adapters merged."""
    from coterie.cli.commands import export_policy

    export_policy(run, folder)


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Folders or hub ids, two or more, of one architecture.")],
    ratio: Annotated[list[float], typer.Option("--ratio", help="Share of what is there already; one a further model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist or be empty.")],
) -> None:
    """Mix saved models: merge A B C --ratio 0.5 --ratio 0.8 is 0.8 (0.5 A + 0.5 B) + 0.2 C."""
    from coterie.cli.commands import merge_models

    merge_models(models, ratio, out)


@app.command()
def plan(
    arguments: Arguments = None,
    model: Model = None,
    task: TaskName = None,
    method: MethodName = None,
    reward: Reward = None,
    rollouts: Recorded = None,
    as_json: Json = False,
) -> None:
    """What a recipe will do, before it does it: pieces, columns with providers and consumers, every derived number."""
    from coterie.cli.plan import show_plan

    show_plan(_recipe(arguments, model, task, method, reward, rollouts), as_json)


@app.command()
def demo(
    which: Annotated[
        str, typer.Argument(help="sort, flow (draws digits), masked-diffusion (adds) or agent (walks).")
    ] = "sort",
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train a tiny model from scratch on this machine: warm start, GRPO, curves, report; minutes on two cores."""
    from coterie.cli.demo import run_demo

    run_demo(which, out, seed, quiet)


@app.command()
def doctor(model: Model = None, as_json: Json = False) -> None:
    """Check the installation, and that sampler and trainer agree on a model's log-probs."""
    from coterie.cli.doctor import examine

    examine(model, as_json)


@methods_app.callback()
def methods(context: typer.Context, as_json: Json = False) -> None:
    """List the named methods."""
    if context.invoked_subcommand is None:
        from coterie.cli.inspect import list_methods

        list_methods(as_json)


@methods_app.command("show")
def methods_show(
    slug: Annotated[str, typer.Argument(help="Method, or several joined by '+'.", autocompletion=_complete_method)],
    as_json: Json = False,
) -> None:
    """Explain a method: formula, symbols, defaults, when to use it, the paper."""
    from coterie.cli.inspect import show_method

    show_method(slug, as_json)


@tasks_app.callback()
def tasks(context: typer.Context, as_json: Json = False) -> None:
    """List the tasks."""
    if context.invoked_subcommand is None:
        from coterie.cli.inspect import list_tasks

        list_tasks(as_json)


@tasks_app.command("validate")
def tasks_validate(
    name: Annotated[str, typer.Argument(help="Task's name, or a data file.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="key=value settings of the task.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows to look at.")] = None,
    as_json: Json = False,
) -> None:
    """Check that the verifier accepts the reference answers and rejects corrupted ones."""
    from coterie.cli.inspect import validate_task

    validate_task(name, arguments or [], limit, as_json)


def echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
