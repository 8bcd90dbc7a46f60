"""Every rollout draws noise in one step, to which its reward is due (arXiv:2508.04324, arXiv:2510.01982)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2508.04324", writes="parent branch", decisions="denoising steps")
def single_noise(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    anchors: int = 1,
    steps: tuple[int, ...] | None = None,
    strides: tuple[int, ...] = (1,),
) -> Rollouts:
    """Fork from the ODE's path: at each of some steps take one step with noise, then follow the ODE to the end.

    anchors: ODE paths a prompt, each from its own noise. steps: where it forks, by default all steps but the last.
    rollout.group_size is anchors x steps x forks of a step x strides. A rollout has one decision; what lies before is
    computed once an anchor. With the baseline `step_norm` forks of the same step are compared.

    strides: every fork goes to the end once by each of them, one step after its noise and from there so many steps at a
    time. All but the first are rollouts whose `parent` is the first, with the same decision, and `branch` behind it.
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
    if min(strides, default=0) < 1:
        told, mend = f"strides are 1 or more, got {list(strides)}", "rollout.strategy.strides=[1,2]"
        raise RecipeError(told, where="rollout.strategy=single_noise", hint=mend)
    unit = anchors * len(forks_at) * len(strides)
    forks = size // unit
    if forks < 1 or forks * unit != size:
        ends = f" x {len(strides)} strides" if len(strides) > 1 else ""
        raise RecipeError(
            f"{anchors} anchors x {len(forks_at)} steps{ends} do not divide rollout.group_size {size}",
            where="rollout.strategy=single_noise",
            hint=f"rollout.group_size={unit * max(round(size / unit), 2)}",
        )
    noise = policy.noise(seeds, replace(spec, shared_noise=False))
    rows = torch.arange(len(noise), device=noise.device)
    rows = rows.view(len(prompts), anchors, len(forks_at), forks, len(strides))
    first = rows[:, : 1 if spec.shared_noise else anchors, 0, 0, 0]  # an anchor starts where its first rollout would
    start = noise[first.expand(len(prompts), anchors).flatten(), 0]
    owner = torch.arange(len(prompts)).repeat_interleave(anchors)
    path = policy.denoise(
        start, prompts, owner, replace(spec, stochastic=()), noise=torch.zeros_like(noise[: len(start), 1:])
    )
    whole = _blank(path, len(noise))
    for place, step in enumerate(forks_at):
        mine = rows[:, :, place].flatten(0, 2)  # a fork's rollouts, by stride
        anchor = torch.arange(len(start), device=noise.device).repeat_interleave(forks)
        x, groups = path.states[anchor, step], owner[anchor.cpu()]
        drawn, noisy = noise[mine[:, 0], step + 1 :], replace(spec, stochastic=(step,))
        rest = policy.denoise(x, prompts, groups, noisy, noise=drawn, first=step, forked=True)
        for name, value in vars(rest).items():
            at = getattr(whole, name)
            at[mine, :step] = getattr(path, name)[anchor, :step].unsqueeze(1)
            at[mine, step:] = value.unsqueeze(1)
        for column, stride in enumerate(strides):
            if stride > 1:
                stops = _stops(step + 1, spec.steps, stride)
                whole.states[mine[:, column], step + 1 :] = policy.coast(
                    rest.states[:, 1], prompts, groups, spec, stops
                )
    groups = torch.arange(len(prompts)).repeat_interleave(size)
    made = policy.table(prompts, groups, whole, sampling, entropy=entropy)
    made.columns["parent"] = rows[..., :1].expand(rows.shape).flatten()
    behind = torch.tensor(forks_at, device=rows.device).view(1, 1, -1, 1, 1) + 1
    made.columns["branch"] = torch.where(rows == rows[..., :1], -1, behind).flatten()
    return made


def _stops(first: int, end: int, stride: int) -> list[int]:
    """Where a path of a stride stops: a step after the first, from there by the stride; the last stop is the end."""
    stops = [first, *range(first + 1, end + 1, stride)]
    return [*stops[:-1], end] if len(stops) > 1 else stops


def _blank(path: Any, rows: int) -> Any:
    """A path of the same kind for so many rows."""
    return type(path)(**{name: value.new_zeros(rows, *value.shape[1:]) for name, value in vars(path).items()})
