"""The sampling spec of a step and of an evaluation, for tokens and for denoising steps."""

from __future__ import annotations

from coterie.recipe import Recipe
from coterie.rollouts import Denoising, Sampling
from coterie.schedules import resolve
from coterie.sections import Settings
from coterie.tasks.base import Task
from coterie.wiring import wanted


def of_step(recipe: Recipe, task: Task, step: int) -> Sampling:
    """How rollouts are drawn at a training step."""
    r, d = recipe.settings.rollout, recipe.settings.denoise
    if task.latent is None:
        return Sampling(float(resolve(r.temperature, step)), r.top_p, r.top_k, r.min_p, r.max_tokens, tuple(r.stop))
    rule = recipe.single.get("rollout.sampler")
    settings = tuple(sorted(rule.at(step).items())) if rule is not None else ()
    return Sampling(
        denoising=Denoising(
            d.steps, d.shift, d.guidance, "flow_sde" if rule is None else rule.name, settings, d.shared_noise, d.logp,
            keep_means="mean_gap" in wanted(recipe, "policy"), resolution=d.resolution,
        )
    )  # fmt: skip


def held_out(settings: Settings, task: Task) -> Sampling:
    """How an evaluation draws: tokens at its own temperature, samples by the ODE."""
    r = settings.rollout
    if task.latent is None:
        return Sampling(settings.evaluation.temperature, r.top_p, r.top_k, r.min_p, r.max_tokens, tuple(r.stop))
    return _by_ode(settings)


def probe(settings: Settings, task: Task) -> Sampling:
    """How accuracy is probed before the first step: as rollouts are drawn there."""
    r = settings.rollout
    if task.latent is None:
        temperature = float(resolve(r.temperature, 0))
        return Sampling(temperature, r.top_p, r.top_k, r.min_p, r.max_tokens, tuple(r.stop))
    return _by_ode(settings)


def _by_ode(settings: Settings) -> Sampling:
    d = settings.denoise
    return Sampling(denoising=Denoising(d.eval_steps or d.steps, d.shift, d.guidance, "ode"))
