"""Which kind of policy a task asks for, and what of a recipe is not for that kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coterie import wiring
from coterie.columns import COLUMNS
from coterie.errors import RecipeError, did_you_mean
from coterie.policies.causal_lm import CausalLM
from coterie.policies.diffusers.files import INDEX
from coterie.policies.diffusers.policy import DiffusersPolicy
from coterie.policies.flow.denoising import DenoisingPolicy
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.sections import Denoise, Rollout, Unmask
from coterie.tasks.base import PICTURES, Task

if TYPE_CHECKING:
    from coterie.recipe import Recipe

OF_TOKENS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
"""Settings of `rollout` that say how tokens are drawn."""


OF_TEXT: dict[str, type[CausalLM] | type[MaskedDiffusion]] = {
    "causal_lm": CausalLM,
    "masked_diffusion": MaskedDiffusion,
}
"""Policies that write text, by model.kind."""


def draws_pictures(recipe: Recipe) -> bool:
    """Whether the model is a pipeline of diffusers: it says so, or it is a folder of one."""
    model = recipe.settings.model
    tree = model if isinstance(model, Mapping) else {"name": model}
    name = tree.get("name")
    known = "diffusers" if isinstance(name, str) and (Path(name) / INDEX).is_file() else None
    return tree.get("kind", known) == "diffusers"


def in_pictures(recipe: Recipe, task: Task) -> Task:
    """The task as a pipeline takes it: prompts without graders of their own, which reward functions grade."""
    if not draws_pictures(recipe) or task.latent is not None:
        return task
    if task.world is not None or task.verify is not None or task.rewards:
        raise RecipeError(
            f"task '{task.name}' grades texts, and a pipeline of diffusers draws pictures",
            hint="task=colours, or task=PROMPTS.jsonl with reward functions of pictures",
        )
    return replace(task, latent=PICTURES, reference=None, demonstration=None)


def kind_of(recipe: Recipe, task: Task) -> type[CausalLM] | type[MaskedDiffusion] | type[DenoisingPolicy]:
    """The kind of policy whose samples are those of the task; of those that write text, the one of model.kind."""
    if task.latent is not None:
        if (task.latent == PICTURES) != draws_pictures(recipe):
            asks = "pictures of any size" if task.latent == PICTURES else f"arrays of shape {task.latent.shape}"
            raise RecipeError(
                f"task '{task.name}' asks for {asks}, and the model does not draw these",
                where="model",
                hint="--model FOLDER_OF_A_PIPELINE, or model='{kind: diffusers, init: {architecture: sd3}}'"
                if task.latent == PICTURES
                else "model='{flow: {layers: 3}}', or task=colours",
            )
        return DiffusersPolicy if task.latent == PICTURES else FlowPolicy
    if draws_pictures(recipe):
        raise RecipeError("a pipeline of diffusers learns from what it draws, not from recorded rollouts")
    model = recipe.settings.model
    name = model.get("kind", "causal_lm") if isinstance(model, Mapping) else "causal_lm"
    if name not in OF_TEXT:
        raise RecipeError(
            f"unknown kind of model '{name}'", where="model.kind", hint=did_you_mean(str(name), [*OF_TEXT, "diffusers"])
        )
    return OF_TEXT[name]


def check(recipe: Recipe, task: Task) -> None:
    """Raise RecipeError for a piece or setting that is not for the kind of policy: nothing is silently without effect.

    Pieces are refused by the columns they read, strategies by the decisions they drive.
    """
    kind = kind_of(recipe, task)
    name = f"a policy of {kind.decisions}"
    if kind is not CausalLM and "objective.imitation" in recipe.single:
        raise RecipeError(
            f"objective.imitation learns tokens one after another, and {name} does not write so",
            hint="model.kind=causal_lm, or leave objective.imitation out",
        )
    if kind is not MaskedDiffusion:
        _refuse_settings(recipe.settings.unmask, Unmask(), Unmask.model_fields, "unmask", name)
    else:
        _refuse_settings(recipe.settings.rollout, Rollout(), ("stop",), "rollout", name)
    if not issubclass(kind, DenoisingPolicy):
        if "rollout.sampler" in recipe.single:
            raise RecipeError(
                f"rollout.sampler={recipe.single['rollout.sampler'].piece.slug} is a rule for denoising steps, and "
                f"task '{task.name}' is sampled by tokens",
                hint="--task digits, or leave rollout.sampler out",
            )
        _refuse_settings(recipe.settings.denoise, Denoise(), Denoise.model_fields, "denoise", name)
    else:
        _refuse_settings(recipe.settings.rollout, Rollout(), OF_TOKENS, "rollout", name)
        if recipe.process is not None:
            raise RecipeError(f"rewards.process scores the steps of a text, and {name} writes none")

    for use in wiring.uses(recipe):
        if use.consumers and use.column in kind.lacks:
            raise RecipeError(
                f"{use.consumers[0]} reads '{use.column}' ({COLUMNS[use.column].meaning}), which {name} does not have: "
                f"{kind.lacks[use.column]}",
                hint=f"task '{task.name}' is sampled by {kind.decisions}: choose a piece that does not read it",
            )
    strategy = recipe.single["rollout.strategy"].piece
    if task.world is not None:
        if kind is not CausalLM:
            raise RecipeError(
                f"task '{task.name}' is played in many turns, and {name} takes its decisions in one",
                hint="model.kind=causal_lm",
            )
        if "world" not in (*strategy.required, *strategy.optional):
            raise RecipeError(
                f"rollout.strategy={strategy.slug} completes prompts, and task '{task.name}' is played in many turns",
                hint="rollout.strategy=plain",
            )
        if recipe.process is not None:
            raise RecipeError(
                f"rewards.process scores steps of a text, and task '{task.name}' scores its turns",
                hint="leave rewards.process out",
            )
    for lacks in {"world", "script"} & {*strategy.required}:
        if task.world is None or getattr(task, lacks) is None:
            raise RecipeError(
                f"rollout.strategy={strategy.slug} plays in a world, and task '{task.name}' has no {lacks}",
                hint="a task with a world and a script: frozen-lake, guess-number; or rollout.strategy=plain",
            )
    if strategy.decisions not in (None, kind.decisions):
        raise RecipeError(
            f"rollout.strategy={strategy.slug} drives a policy of {strategy.decisions}, and task '{task.name}' is "
            f"sampled by {kind.decisions}",
            hint="rollout.strategy=plain",
        )


def _refuse_settings(given: object, default: object, names: object, section: str, kind: str) -> None:
    for name in names:  # type: ignore[attr-defined]
        if getattr(given, name) != getattr(default, name):
            key = f"{section}.{name}"
            raise RecipeError(f"{key} is set, and {kind} does not use it", hint=f"leave out {key}")
