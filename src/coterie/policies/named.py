"""The policy that a recipe names: which kind it is, and its model's settings read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from coterie.errors import RecipeError, did_you_mean, plainly
from coterie.policies import kinds
from coterie.policies.base import Policy
from coterie.policies.causal_lm import CausalLM
from coterie.policies.diffusers.policy import DiffusersPolicy
from coterie.policies.diffusers.spec import DiffusersSpec
from coterie.policies.diffusers.spec import LoraSpec as DiffusersLora
from coterie.policies.diffusers.tiny import TinySpec as TinyPipelineSpec
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowShape, FlowSpec
from coterie.policies.loading import LoraSpec, ModelSpec, SourceSpec
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec
from coterie.policies.tiny import CHARACTERS, TinySpec
from coterie.recipe import Recipe
from coterie.streams import stream
from coterie.tasks.base import Task

Spec = TypeVar("Spec", bound=SourceSpec)


def load_policy(recipe: Recipe, task: Task, checkpoint: Path | None = None) -> Policy:
    """The policy that the recipe names, of the kind that the task asks for."""
    kind = kinds.kind_of(recipe, task)
    if kind is DiffusersPolicy and task.latent is not None and task.latent.told:
        raise RecipeError(
            f"task '{task.name}' tells the model a sample, and a pipeline is told a text",
            hint="model='{flow: {layers: 3}}' makes a small one",
        )
    if kind is DiffusersPolicy:
        return DiffusersPolicy.load(diffusers_spec(recipe, checkpoint))
    if kind is MaskedDiffusion:
        return MaskedDiffusion.load(model_spec(recipe, task, checkpoint, MaskedDiffusionSpec), recipe.settings)
    if task.latent is None:
        return CausalLM.load(model_spec(recipe, task, checkpoint, ModelSpec))
    latent = task.latent
    return FlowPolicy.load(flow_spec(recipe, checkpoint), latent.shape, latent.classes, latent.told)


def flow_spec(recipe: Recipe, checkpoint: Path | None = None) -> FlowSpec:
    """The flow model as the recipe names it."""
    tree = _model_tree(recipe, "--model FOLDER, or model='{flow: {layers: 3}}' for a small one")
    if "flow" in tree:
        tree["flow"] = tree["flow"] or {}
    if checkpoint is not None:
        tree.pop("flow", None)
        tree["name"] = str(checkpoint / "policy")
    try:
        return FlowSpec.model_validate(tree)
    except ValidationError as error:
        raise _model_error(error, recipe, FlowShape.model_fields, FlowSpec.model_fields) from None


def diffusers_spec(recipe: Recipe, checkpoint: Path | None = None) -> DiffusersSpec:
    """The pipeline as the recipe names it. Adapters are in the checkpoint's state, a whole denoiser in its folder."""
    tree = _model_tree(recipe, "--model FOLDER, or model='{kind: diffusers, init: {architecture: sd3}}' for a tiny one")
    if "init" in tree:
        tree["init"] = tree["init"] or {}
    try:
        spec = DiffusersSpec.model_validate(tree)
    except ValidationError as error:
        inner = DiffusersLora.model_fields if "lora" in error.errors()[0]["loc"] else TinyPipelineSpec.model_fields
        raise _model_error(error, recipe, inner, DiffusersSpec.model_fields) from None
    if checkpoint is not None and spec.lora is None:
        return spec.model_copy(update={"name": str(checkpoint / "policy"), "init": None, "revision": None})
    return spec


def model_spec(recipe: Recipe, task: Task, checkpoint: Path | None, spec: type[Spec], section: str = "model") -> Spec:
    """The language model that `section` names; a tiny one made here takes its characters from the task."""
    hint = "--model PATH_OR_HUB_ID, or model='{init: {layers: 2}}' for a tiny one"
    tree = _model_tree(recipe, hint, section)
    if "init" in tree and isinstance(tree["init"], Mapping | None):
        tree["init"] = {"vocabulary": task.vocabulary or _characters(task), **(tree["init"] or {})}
    if checkpoint is not None and not tree.get("lora"):
        tree.pop("init", None)
        tree["name"] = str(checkpoint / "policy")
    try:
        return spec.model_validate(tree)
    except ValidationError as error:
        tiny = TinyMaskedSpec if issubclass(spec, MaskedDiffusionSpec) else TinySpec
        inner = LoraSpec.model_fields if "lora" in error.errors()[0]["loc"] else tiny.model_fields
        raise _model_error(error, recipe, inner, spec.model_fields, section) from None


def _model_tree(recipe: Recipe, hint: str, section: str = "model") -> dict[str, Any]:
    written = recipe.settings.model if section == "model" else recipe.settings.teacher.model
    if written is None:
        raise RecipeError("no model is named", hint=hint)
    tree: dict[str, Any] = {"name": written} if isinstance(written, str) else dict(written)
    tree.setdefault("seed", stream(recipe.settings.seed, section, *([recipe.agent] if recipe.agent else [])))
    return tree


def _model_error(
    error: ValidationError, recipe: Recipe, inner: Iterable[str], outer: Iterable[str], section: str = "model"
) -> RecipeError:
    """The first thing wrong, by its key; `inner` are the settings of a mapping inside the model's."""
    problem = error.errors()[0]
    key = ".".join([section, *map(str, problem["loc"])])
    unknown = problem["type"] == "extra_forbidden"
    got = "" if isinstance(problem["input"], Mapping) else f", got {problem['input']!r}"
    return RecipeError(
        f"unknown key '{key}'" if unknown else f"{key}: {plainly(problem)}{got}",
        where=recipe.where(key),
        hint=did_you_mean(str(problem["loc"][-1]), inner if len(problem["loc"]) > 1 else outer) if unknown else None,
    )


def _characters(task: Task) -> str:
    """Every character a task's prompts and answers are written in, beside the usual ones."""
    found = set(CHARACTERS)
    for source in (task.train, task.held_out):
        for i in range(len(source)):
            row = source[i]
            prompt = row["prompt"]
            texts = [prompt] if isinstance(prompt, str) else [str(m["content"]) for m in prompt]
            for text in (*texts, task.reference(row) if task.reference else ""):
                found.update(text)
    return "".join(sorted(found))
