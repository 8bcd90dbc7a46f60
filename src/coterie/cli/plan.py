"""`coterie plan`: what a recipe will do, before anything is loaded."""

from __future__ import annotations

from typing import Any

from coterie import demonstrations, mismatch, wiring
from coterie.build import build_task, check_apart, check_together, trained_elsewhere
from coterie.cli.output import console, print_json, table
from coterie.offline.recorded import Recorded, load
from coterie.policies import kinds
from coterie.recipe import Recipe
from coterie.rewards.pairwise.contest import contest_of
from coterie.rewards.process import process_of
from coterie.rollout.place import Place
from coterie.tasks.base import Task


def show_plan(recipe: Recipe, as_json: bool) -> None:
    """Pieces, columns with providers and consumers, and every derived number."""
    if recipe.settings.offline.rollouts is not None:
        recorded = load(recipe.settings)
        task = build_task(recipe, recorded)
        wiring.check_offline(recipe, recorded.columns, recorded.group_size)
        _show(recipe, task, as_json, offline_numbers(recipe, recorded, len(task.held_out)))
        return
    task = build_task(recipe)
    process = process_of(task, recipe.process, recipe.settings.rewards)
    kinds.check(recipe, task)
    wiring.check(recipe, has_verifier=task.judges, has_process=process is not None, provides=task.provides)
    wiring.check_teacher(recipe)
    wiring.check_reference(recipe)
    demonstrations.check(recipe, task)
    if recipe.policies:
        check_together(recipe, task)
    if recipe.settings.apart.path is not None:
        check_apart(recipe)
    for own in recipe.policies.values():
        wiring.check(own, has_verifier=task.judges, has_process=process is not None, provides=task.provides)
        wiring.check_teacher(own)
    said = mismatch.correct(recipe, mismatch.samples_itself(recipe))
    numbers = derived(recipe, len(task.train), len(task.held_out))
    numbers["sampler"] = said or _sampler(recipe)
    contest = contest_of(recipe.judge, recipe.single.get("rewards.pairwise.scheme"), recipe.settings)
    if contest is not None:
        shown = contest.shown(recipe.settings.rollout.group_size) * recipe.settings.draw.prompts
        numbers["pairwise judge"] = f"{contest.judge.name}, {contest.scheme}: {shown} verdicts an update"
    elsewhere = trained_elsewhere(recipe)
    if recipe.policies:
        numbers["policies"] = ", ".join(
            f"{name} ({own.method}{'' if 'optimizer' in own.single else ', frozen'}"
            f"{', trained elsewhere' if name in elsewhere else ''})"
            for name, own in recipe.policies.items()
        )
    if elsewhere:
        numbers["apart"] = _apart(recipe)
    if task.world is not None:
        numbers["world"] = task.world.described
    _show(recipe, task, as_json, numbers)


def _show(recipe: Recipe, task: Task, as_json: bool, numbers: dict[str, Any]) -> None:
    columns = wiring.uses(recipe)
    if as_json:
        print_json({
            "method": recipe.method,
            "pieces": [
                {"slot": s, "piece": b.piece.slug, "settings": _plain(b.settings)} for s, b in recipe.all_bound()
            ],
            "columns": [
                {"column": u.column, "provider": u.provider, "cost": u.cost, "consumers": list(u.consumers),
                 "optional_for": list(u.optional_for)} for u in columns
            ],
            "derived": numbers,
        })  # fmt: skip
        return
    console.print(f"[bold]{recipe.method}[/bold] on {task.name}\n")
    pieces = table("slot", "piece", "settings")
    for slot, bound in recipe.all_bound():
        pieces.add_row(slot, bound.piece.slug, ", ".join(f"{k}={v}" for k, v in _plain(bound.settings).items()))
    console.print(pieces)
    console.print()
    uses = table("column", "provider", "cost", "read by")
    for use in columns:
        readers = [*use.consumers, *(f"{c} (if there)" for c in use.optional_for)]
        uses.add_row(use.column, use.provider, use.cost, "\n".join(readers))
    console.print(uses)
    console.print()
    rest = table("derived", "")
    for name, value in numbers.items():
        rest.add_row(name, str(value))
    console.print(rest)


SYNC = {
    "auto": "through Ray's object store on this machine, straight to other machines",
    "objects": "through Ray's object store",
    "direct": "straight to each (nccl where both have a GPU of their own, else gloo)",
}


def derived(recipe: Recipe, train: int, held_out: int) -> dict[str, Any]:
    """Numbers that follow from the recipe, so that nothing about sizes has to be guessed."""
    s = recipe.settings
    rows = s.draw.prompts * s.rollout.group_size
    on_ray = s.scale.engine == "ray"
    workers = s.scale.rollout_workers if on_ray else s.scale.train_workers
    share = -(-s.draw.prompts // workers)
    each: dict[str, Any] = {}
    if on_ray:
        each = {"trainers": s.scale.train_workers, "weights to rollout workers": SYNC[s.scale.sync]}
    each |= {"workers": workers, "most prompts a worker": share, "most rollouts a worker": share * s.rollout.group_size}
    return (each if workers > 1 or on_ray else {}) | {
        "prompts an update": s.draw.prompts,
        "rollouts a prompt": s.rollout.group_size,
        "rollouts an update": rows,
        "rollouts an optimizer step": f"about {rows / s.update.minibatches:g}",
        "optimizer steps an update": s.update.epochs * s.update.minibatches,
        "optimizer steps in all": s.steps * s.update.epochs * s.update.minibatches,
        "most sampled tokens an update": rows * s.rollout.max_tokens,
        "micro-batch": f"at most {s.update.tokens_per_microbatch} prompt and completion tokens",
        "epochs over the task": f"{s.steps * s.draw.prompts / max(train, 1):.3g} of {train} prompts",
        "held-out problems": held_out,
        "reference policy": f"{s.reference.update}" if wiring.reads_reference(recipe) else "not loaded",
        "teacher": _teacher(recipe),
        "demonstrations": _demonstrations(recipe),
        "evaluations": 2 + (s.steps - 1) // s.evaluation.every if s.evaluation.every else 2,
    }


def _apart(recipe: Recipe) -> str:
    spec, first = recipe.settings.apart, next(iter(recipe.policies))
    what = "plays and evaluates" if first in spec.train else f"on what the run of {first} plays"
    here = f"this run trains {' and '.join(spec.train)}{',' if first in spec.train else ''} {what}"
    return f"{here}; weights at most {spec.staleness} steps late; they meet at {Place(str(spec.path)).shown}"


def _sampler(recipe: Recipe) -> str:
    if "logp_train" in wiring.wanted(recipe, "policy"):
        return "what it differs from the trainer by is corrected"
    return "the weights that are trained: its log-probs are the trainer's own, no correction"


def offline_numbers(recipe: Recipe, recorded: Recorded, held_out: int) -> dict[str, Any]:
    """The same for a run on recorded rollouts."""
    out = derived(recipe, len(recorded), held_out)
    for name in ("rollouts a prompt", "rollouts an update", "rollouts an optimizer step", "epochs over the task",
                 "most sampled tokens an update", "prompts an update"):  # fmt: skip
        out.pop(name)
    groups = recipe.settings.draw.prompts
    first = {
        "recorded groups": len(recorded),
        "recorded rollouts": recorded.rollouts,
        "groups an update": groups,
        "rollouts an update": f"about {groups * recorded.rollouts / len(recorded):.4g}",
        "epochs over the groups": f"{recipe.settings.steps * groups / len(recorded):.3g}",
        "log-probs of the data": "recorded" if not recorded.lacks_logp else "the starting policy's",
    }
    return first | out


def _demonstrations(recipe: Recipe) -> str:
    reader = demonstrations.needs(recipe)
    if "objective.imitation" in recipe.single:
        return f"{recipe.settings.draw.demonstrations} an optimizer step, for {reader}"
    return f"of each prompt, for {reader}" if reader is not None else "not used"


def _teacher(recipe: Recipe) -> str:
    if not wiring.wanted(recipe, "teacher"):
        return "not loaded"
    written = recipe.settings.teacher.model
    name = written if isinstance(written, str) else written.get("name") or "random weights"
    return f"{name}: its weights in memory, and one forward of every rollout an update"


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v.model_dump(by_alias=True) if hasattr(v, "model_dump") else v for k, v in settings.items()}
