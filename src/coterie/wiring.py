"""Columns on demand: which columns a recipe reads, who provides them, at what cost. Checked before loading."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from coterie.columns import ARGUMENT, COLUMNS
from coterie.errors import RecipeError
from coterie.pieces import BoundPiece
from coterie.recipe import Recipe

COST = {
    "policy": "forward",
    "reference": "weights in memory + forward",
    "teacher": "second model in memory + forward",
    "history": "forward of earlier rollouts",
    "roll out": "free",
    "environment": "environment",
}
MADE_IN = {"credit": "credit", "select": "selection.weights", "update": "objective"}
"""Provider -> the slots in which its columns appear."""
_ORDER = ["rewards", "selection.filters", "credit", "selection.weights", "objective"]


@dataclass(frozen=True)
class Use:
    """One column of the plan."""

    column: str
    provider: str
    consumers: tuple[str, ...]
    optional_for: tuple[str, ...]

    @property
    def cost(self) -> str:
        return COST.get(self.provider, "free")


def uses(recipe: Recipe) -> list[Use]:
    """Every column some piece of the recipe names, in the vocabulary's order."""
    needed: dict[str, list[str]] = {}
    wished: dict[str, list[str]] = {}
    for slot, bound in recipe.all_bound():
        label = f"{slot}={bound.piece.slug}"
        for column in bound.piece.required:
            needed.setdefault(column, []).append(label)
        for column in bound.piece.optional:
            wished.setdefault(column, []).append(label)
    return [
        Use(name, c.provider, tuple(needed.get(name, ())), tuple(wished.get(name, ())))
        for name, c in COLUMNS.items()
        if name in needed or name in wished
    ]


PROCESS = frozenset({"turn", "step_rewards"})
"""Columns that a process function fills."""


def check(
    recipe: Recipe,
    *,
    has_verifier: bool | None = None,
    has_process: bool | None = None,
    provides: frozenset[str] = frozenset(),
) -> None:
    """Raise RecipeError for a recipe that could not run: a column nobody provides or that is made too late, a group too
    small, an objective that is missing or whose shapes do not fit. Warn of two normalisations in a row.

    `provides`: columns of environments in use. `has_verifier`: whether the task fills `correct`. `has_process`: whether
    recipe or task have a function that scores steps. What is not said (None) is not refused.
    """
    strategy = recipe.single["rollout.strategy"].piece
    made = _made_by_strategy(recipe)
    scored = has_process is not False and "turn" not in made
    _check_providers(recipe, has_verifier, provides | made | (PROCESS if scored else frozenset()))
    _check_steps(recipe)
    _check_arguments(recipe)
    if "verify" in strategy.required and has_verifier is False:
        raise RecipeError(
            f"rollout.strategy={strategy.slug} asks the task's verifier, and the task has none",
            hint="give the task a verifier, or rollout.strategy=plain",
        )
    if recipe.settings.rollout.group_size < strategy.min_group:
        raise RecipeError(
            f"rollout.strategy={strategy.slug} makes groups of at least {strategy.min_group} rollouts, and "
            f"rollout.group_size is {recipe.settings.rollout.group_size}",
            hint="rollout.group_size=8",
        )
    if strategy.slug in ("renoised", "explored"):  # their decisions stand in no order
        for slot, bound in recipe.all_bound():
            if {"preview_rewards", "best_gap", "fine_gap"} & {*bound.piece.required}:
                raise RecipeError(
                    f"{slot}={bound.piece.slug} follows the steps of a path, and the decisions of "
                    f"rollout.strategy={strategy.slug} are draws of noise on finished samples",
                    hint="rollout.strategy=plain",
                )
    readers = _readers(recipe, "preview_rewards")
    if readers and recipe.judge is not None:
        raise RecipeError(
            f"{readers[0][0]}={readers[0][1].piece.slug} rewards what single steps foresee, and a judge compares "
            "finished samples",
            hint="a reward function in place of rewards.pairwise",
        )
    _check_pieces(recipe, recipe.settings.rollout.group_size, "rollout.group_size is")


def _check_pieces(recipe: Recipe, group_size: int, says: str) -> None:
    """What holds of pieces by themselves and beside each other, wherever the rollouts come from."""
    for slot, bound in recipe.all_bound():
        _check_order(slot, bound)
        if group_size < bound.piece.min_group:
            raise RecipeError(
                f"{slot}={bound.piece.slug} compares the rollouts of one prompt, and {says} {group_size}",
                hint="rollout.group_size=8, or a baseline over the batch: credit.baseline=whitened_return",
            )
    _check_objective(recipe)
    _check_shaping(recipe)
    whiteners = [f"{slot}={b.piece.slug}" for slot, b in recipe.all_bound() if slot.startswith("credit") and whitens(b)]
    if len(whiteners) > 1:
        warnings.warn(f"two pieces normalise the advantage, one after the other: {', '.join(whiteners)}", stacklevel=2)


def check_offline(recipe: Recipe, recorded: frozenset[str], group_size: int) -> None:
    """`check`, for a recipe that learns from recorded rollouts with these columns: nothing is rolled out or graded."""
    strategy = recipe.single["rollout.strategy"].piece.slug
    if strategy != "plain":
        raise RecipeError(
            f"rollout.strategy={strategy} has nothing to do: the rollouts are recorded", hint="rollout.strategy=plain"
        )
    if recipe.functions or recipe.process is not None or recipe.judge is not None:
        raise RecipeError(
            "recorded rollouts are not graded again, and a reward is named",
            hint="leave it out; rewards.weights weighs the recorded components anew",
        )
    for use in uses(recipe):
        made = use.provider in ("roll out", "score", "environment")
        if use.consumers and made and use.column not in recorded:
            raise RecipeError(
                f"{use.consumers[0]} reads '{use.column}' ({COLUMNS[use.column].meaning}), which the recorded rollouts "
                "do not have",
                hint="record them with a method that makes it, or choose another piece",
            )
    _check_arguments(recipe)
    _check_pieces(recipe, group_size, "the largest recorded group has")


def check_teacher(recipe: Recipe) -> None:
    """Raise RecipeError where a piece reads what a teacher says and none is named."""
    for use in uses(recipe):
        if use.provider == "teacher" and use.consumers and recipe.settings.teacher.model is None:
            raise RecipeError(
                f"{use.consumers[0]} reads column '{use.column}', and no teacher is named",
                hint="teacher.model=PATH_OR_HUB_ID, a causal LM with the policy's tokenizer",
            )
    if recipe.settings.teacher.model is not None and not recipe.agent and not wanted(recipe, "teacher"):
        raise RecipeError(
            "a teacher is named, and no piece of the recipe reads what it says",
            where=recipe.where("teacher.model"),
            hint="a method that does: kdrl; or leave teacher.model out",
        )


def check_reference(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe says how the reference moves and nothing of it reads a reference."""
    update = recipe.settings.reference.update
    if update != "frozen" and not recipe.agent and not reads_reference(recipe):
        raise RecipeError(
            f"reference.update is {update}, and no piece of the recipe reads the reference",
            where=recipe.where("reference.update"),
            hint="a method that does: grpo+kl; or leave reference.update out",
        )


_MENDS = {
    "step_rewards": "an agent environment or a process function does: rewards.process=file.py:name scores each step",
    "turn": "rewards.process=file.py:name, rollout.strategy=segment_tree or an agent environment does",
    "state_key": "an agent environment or rollout.strategy=segment_tree does",
    "other_rewards": "a world of several agents does: task=dilemma",
    "episode": "a world of several agents does: task=dilemma",
    "parent": "a strategy that forks does: rollout.strategy=segment_probes, or noise_tree where steps denoise",
    "anchor": "rollout.strategy=reference_answer does",
    "ran": "rollout.strategy=retried_calls does, in a world of tools",
    "given": "rollout.strategy=inpainted does",
    "heat": "rollout.strategy=tempered_extra does",
    "branch": "a strategy that forks does: rollout.strategy=segment_probes, or noise_tree where steps denoise",
}


def reads_steps(recipe: Recipe) -> bool:
    """Whether a process function is of use: a piece reads what it gives, and the strategy says nothing of steps."""
    read = any(PROCESS & {*b.piece.required, *b.piece.optional} for _, b in recipe.all_bound())
    return read and "turn" not in _made_by_strategy(recipe)


def _made_by_strategy(recipe: Recipe) -> frozenset[str]:
    return frozenset((recipe.single["rollout.strategy"].piece.writes or "").split())


def _check_steps(recipe: Recipe) -> None:
    """A process function that is named must be of use, and steps have one maker."""
    if recipe.process is None or reads_steps(recipe):
        return
    if "turn" not in _made_by_strategy(recipe):
        raise RecipeError(
            "rewards.process is named, and no piece of the recipe reads the scores of steps",
            hint="a method that does: prof, tp-grpo, rank-grpo; or leave rewards.process out",
        )
    raise RecipeError(
        "rewards.process and rollout.strategy="
        f"{recipe.single['rollout.strategy'].piece.slug} both say which step a decision is in",
        hint="rollout.strategy=plain, or leave rewards.process out",
    )


def _check_providers(recipe: Recipe, has_verifier: bool | None, provides: frozenset[str]) -> None:
    for use in uses(recipe):
        if not use.consumers:
            continue
        if use.provider == "environment" and use.column not in provides:
            raise RecipeError(
                f"{use.consumers[0]} reads '{use.column}' ({COLUMNS[use.column].meaning}), which nobody provides",
                hint=_MENDS.get(use.column, "an agent environment provides it; this recipe has none"),
            )
        if use.column == "correct" and has_verifier is False:
            raise RecipeError(
                f"{use.consumers[0]} reads column 'correct', and the task has no verifier",
                hint="give the task a verifier, or choose a piece that reads rewards",
            )


def _readers(recipe: Recipe, column: str) -> list[tuple[str, BoundPiece]]:
    return [(slot, b) for slot, b in recipe.all_bound() if column in b.piece.required]


def argument(recipe: Recipe, column: str, step: int) -> Any:
    """What the pieces that read a column of ARGUMENT want it made with."""
    return _readers(recipe, column)[0][1].argument(ARGUMENT[column], step)


def _check_arguments(recipe: Recipe) -> None:
    """A column that depends on its reader's setting is made once, so its readers must agree."""
    for column, name in ARGUMENT.items():
        found = _readers(recipe, column)
        for slot, bound in found:
            if name not in bound.piece.settings and not hasattr(bound.instance, name):
                raise RecipeError(
                    f"{slot}={bound.piece.slug} reads '{column}', which depends on a setting '{name}' that it lacks",
                    hint=f"give the piece a keyword-only parameter {name}",
                )
        said = {repr(b.settings.get(name)): f"{slot}={b.piece.slug}" for slot, b in found}
        if len(said) > 1:
            raise RecipeError(
                f"{' and '.join(said.values())} read '{column}' with different {name}: {', '.join(said)}",
                hint="a column is made once: give both the same, or leave one out",
            )


def _check_order(slot: str, bound: BoundPiece) -> None:
    """A column is read in the stage that makes it, or after."""
    here = next(i for i, stage in enumerate(_ORDER) if slot.startswith(stage))
    for column in bound.piece.required:
        stage = MADE_IN.get(COLUMNS[column].provider)
        if stage is not None and here < _ORDER.index(stage):
            raise RecipeError(
                f"{slot}={bound.piece.slug} reads column '{column}' before the {stage.split('.')[0]} stage makes it"
            )


def _check_shaping(recipe: Recipe) -> None:
    """What shapes the reward must reach the credit: a baseline over the components alone would pass it by."""
    chain, baseline = recipe.chain["rewards.shaping"], recipe.single["credit.baseline"].piece
    credit = [baseline, *(b.piece for b in recipe.chain["credit.modifiers"])]
    reads = {column for piece in credit for column in piece.required}
    if chain and "components" in reads and not reads & {"rewards", "token_rewards"}:
        raise RecipeError(
            f"rewards.shaping={chain[0].piece.slug} shapes the sum of the rewards, and credit.baseline={baseline.slug} "
            "reads the components before they are summed",
            hint="a reward function for what is shaped, as a component of its own; or credit.baseline=group_norm",
        )


def _check_objective(recipe: Recipe) -> None:
    single = recipe.single
    if "objective.loss" not in single and "objective.trust_region" not in single:
        raise RecipeError("the recipe has no objective", hint="objective.trust_region=ppo_clip, or objective.loss=…")
    ratio = single.get("objective.ratio")
    credit = [single["credit.baseline"], *recipe.chain["credit.modifiers"]]
    by_decision = [b.piece.slug for b in credit if b.piece.shape == "B T"]
    if ratio is not None and ratio.piece.shape == "B" and by_decision:
        raise RecipeError(
            f"objective.ratio={ratio.piece.slug} has one ratio a rollout, and {by_decision[0]} gives an advantage a "
            "decision",
            hint="objective.ratio=sequence_token",
        )


def whitens(bound: BoundPiece) -> bool:
    """Whether a credit piece divides by a spread of rewards (so that two in a chain deserve a warning)."""
    always = bound.piece.slug.startswith(("whitened", "decoupled", "pareto", "smooth"))
    return always or bound.settings.get("scale") in ("std", "batch_std", "centred_std", "mad")


def reads_reference(recipe: Recipe) -> bool:
    """Whether some piece needs the reference policy: a column of it, or one that is measured against it."""
    return bool(wanted(recipe, "reference")) or bool({"kl_ref", "fine_gap"} & wanted(recipe, "policy"))


def wanted(recipe: Recipe, provider: str, *slots: str) -> set[str]:
    """Columns of a provider that pieces in these slots (prefixes; none means all) require."""
    return {
        column
        for slot, bound in recipe.all_bound()
        if not slots or slot.startswith(slots)
        for column in bound.piece.required
        if COLUMNS[column].provider == provider
    }
