"""Columns on demand: which columns a recipe reads, who provides them, at what cost. Checked before loading."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.columns import COLUMNS
from coterie.errors import RecipeError
from coterie.pieces import BoundPiece
from coterie.recipe import Recipe

PROVIDED_BY = {
    "draw": "the draw stage",
    "roll out": "the roll-out stage, captured while sampling",
    "score": "the score stage",
    "credit": "the credit stage",
    "select": "the select stage",
    "update": "the recipe's objective.ratio",
    "loop": "the loop",
    "policy": "a forward pass of the policy",
    "reference": "a reference policy (one more forward pass without gradient)",
    "environment": "an agent environment",
}
COST = {
    "policy": "forward",
    "reference": "weights in memory + forward",
    "roll out": "free",
    "environment": "environment",
}
PRODUCED_IN = {"credit": "credit", "select": "selection", "update": "objective"}
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


def check(recipe: Recipe, *, has_verifier: bool | None = None, provides: frozenset[str] = frozenset()) -> None:
    """Raise RecipeError when a piece reads a column nobody provides, or one that is only made after it runs.

    `provides`: columns of environments and strategies in use. `has_verifier`: whether the task fills `correct`.
    """
    for use in uses(recipe):
        if not use.consumers:
            continue
        if use.provider == "environment" and use.column not in provides:
            raise RecipeError(
                f"{use.consumers[0]} reads '{use.column}' ({COLUMNS[use.column].meaning}), which nobody provides",
                hint="an agent environment or a tree strategy provides it; this recipe has neither",
            )
        if use.column == "correct" and has_verifier is False:
            raise RecipeError(
                f"{use.consumers[0]} reads column 'correct', and the task has no verifier",
                hint="give the task a verifier, or choose a piece that reads rewards",
            )
    for slot, bound in recipe.all_bound():
        for column in bound.piece.required:
            stage = PRODUCED_IN.get(COLUMNS[column].provider)
            if stage is None:
                continue
            here = next(i for i, name in enumerate(_ORDER) if slot.startswith(name))
            made = next(i for i, name in enumerate(_ORDER) if stage.startswith(name) or name.startswith(stage))
            if column == "weights":
                made = _ORDER.index("selection.weights")
            if here < made:
                raise RecipeError(
                    f"{slot}={bound.piece.slug} reads column '{column}' before the {stage} stage makes it"
                )
    for slot, bound in recipe.all_bound():
        if recipe.settings.rollout.group_size < bound.piece.min_group:
            raise RecipeError(
                f"{slot}={bound.piece.slug} compares the rollouts of one prompt, and rollout.group_size is "
                f"{recipe.settings.rollout.group_size}",
                hint="rollout.group_size=8, or a baseline over the batch: credit.baseline=whitened_return",
            )
    if "objective.loss" not in recipe.single and "objective.trust_region" not in recipe.single:
        raise RecipeError("the recipe has no objective", hint="objective.trust_region=ppo_clip, or objective.loss=…")
    ratio = recipe.single.get("objective.ratio")
    whiteners = [f"{s}={b.piece.slug}" for s, b in recipe.all_bound() if s.startswith("credit") and whitens(b)]
    if len(whiteners) > 1:
        import warnings

        warnings.warn(f"two pieces normalise the advantage, one after the other: {', '.join(whiteners)}", stacklevel=2)
    if ratio is not None and ratio.piece.slug == "sequence":
        for slot, bound in recipe.all_bound():
            if slot == "credit.baseline" and bound.piece.slug == "whitened_return":
                raise RecipeError(
                    "objective.ratio=sequence has one ratio a rollout, and credit.baseline=whitened_return gives an "
                    "advantage a decision",
                    hint="objective.ratio=sequence_token",
                )


def whitens(bound: BoundPiece) -> bool:
    """Whether a credit piece divides by a standard deviation (so that two in a chain deserve a warning)."""
    return bound.settings.get("scale") in ("std", "batch_std") or bound.piece.slug.startswith("whitened")


def wanted(recipe: Recipe, provider: str, *slots: str) -> set[str]:
    """Columns of a provider that pieces in these slots (prefixes; none means all) require."""
    return {
        column
        for slot, bound in recipe.all_bound()
        if not slots or slot.startswith(slots)
        for column in bound.piece.required
        if COLUMNS[column].provider == provider
    }
