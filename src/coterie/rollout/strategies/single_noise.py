"""TempFlow-GRPO's roll-out: every rollout draws noise in one step alone, which its reward is due to (arXiv:2508.04324)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2508.04324", decisions="denoising steps")
def single_noise(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    anchors: int = 1,
    steps: tuple[int, ...] | None = None,
) -> Rollouts:
    """Fork from the ODE's path: at each of some steps take one step with noise, then follow the ODE to the end.

    anchors: ODE paths a prompt, each from its own noise. steps: where it forks, by default all steps but the last.
    rollout.group_size is anchors x steps x forks of a step. A rollout has one decision; what lies before is computed
    once an anchor. With the baseline `step_norm` forks of the same step are compared.
    """
    spec, size = sampling.denoising, len(seeds[0])
    assert spec is not None
    forks_at = tuple(range(spec.steps - 1)) if steps is None else steps
    if not forks_at or not all(0 <= s < spec.steps for s in forks_at):
        raise RecipeError(
            f"there are steps 0 to {spec.steps - 1} to fork at, got {list(forks_at)}",
            where="rollout.strategy=single_noise",
            hint="leave rollout.strategy.steps out for all but the last",
        )
    forks = size // (anchors * len(forks_at))
    if forks < 1 or forks * anchors * len(forks_at) != size:
        unit = anchors * len(forks_at)
        raise RecipeError(
            f"{anchors} anchors x {len(forks_at)} steps do not divide rollout.group_size {size}",
            where="rollout.strategy=single_noise",
            hint=f"rollout.group_size={unit * max(round(size / unit), 2)}",
        )
    noise = policy.noise(seeds, replace(spec, shared_noise=False))
    rows = torch.arange(len(noise), device=noise.device).view(len(prompts), anchors, len(forks_at), forks)
    first = rows[:, : 1 if spec.shared_noise else anchors, 0, 0]  # an anchor starts where its first rollout would
    start = noise[first.expand(len(prompts), anchors).flatten(), 0]
    owner = torch.arange(len(prompts)).repeat_interleave(anchors)
    path = policy.denoise(start, prompts, owner, replace(spec, stochastic=()), noise=_none(start, spec.steps))
    whole = _blank(path, len(noise))
    for place, step in enumerate(forks_at):
        mine = rows[:, :, place].flatten()
        anchor = torch.arange(len(start), device=noise.device).repeat_interleave(forks)
        x, groups = path.states[anchor, step], owner[anchor.cpu()]
        drawn = noise[mine, step + 1 :]
        rest = policy.denoise(x, prompts, groups, replace(spec, stochastic=(step,)), noise=drawn, first=step)
        for name, value in vars(rest).items():
            at = getattr(whole, name)
            at[mine, :step] = getattr(path, name)[anchor, :step]
            at[mine, step:] = value
    groups = torch.arange(len(prompts)).repeat_interleave(size)
    return policy.table(prompts, groups, whole, sampling, entropy=entropy)


def _none(start: Tensor, steps: int) -> Tensor:
    """No noise for a stretch without any."""
    return start.new_zeros(()).expand(len(start), steps, *start.shape[1:])


def _blank(path: Any, rows: int) -> Any:
    """A path of the same kind for so many rows."""
    return type(path)(**{name: value.new_zeros(rows, *value.shape[1:]) for name, value in vars(path).items()})
