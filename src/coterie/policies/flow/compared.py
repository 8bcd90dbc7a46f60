"""What the steps of rollouts are compared with: samples foreseen, velocities on the best path and in finer steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.flow import steps
from coterie.policies.flow.velocity import VelocityModel
from coterie.reductions import group_position
from coterie.rollouts import Rollouts


@torch.no_grad()
def previews(model: VelocityModel, rollouts: Rollouts, row: Tensor, step: Tensor) -> Tensor:
    """The samples foreseen after some steps, each given by its row and its number: what the state becomes if its
    velocity stays to the end. [N,*shape]
    """
    spec, x = steps.spec_of(rollouts.sampling), rollouts.media["states"][row, step + 1]
    after = (step + 1).to(x.device)
    sigma = model.levels(spec)[after]
    last = spec.steps - 1  # behind it there is no velocity, and none is needed
    v = model.velocity(x, rollouts.prompts, rollouts["groups"][row], after.clamp_max(last), spec)
    return x - sigma.view(-1, *[1] * (x.dim() - 1)) * v


@torch.no_grad()
def best_velocities(model: VelocityModel, rollouts: Rollouts) -> Tensor:
    """For each decision the velocity in the same step on the best path of its group: that of the rollout with the
    highest reward, the first of these. 0 elsewhere. [B,steps,*shape]
    """
    row, step = rollouts["mask"].nonzero(as_tuple=True)
    rewards, groups = rollouts["rewards"], rollouts["groups"]
    place = group_position(-rewards, groups)
    best = torch.zeros(int(groups.max()) + 1, dtype=torch.long, device=groups.device)
    best[groups[place == 0]] = (place == 0).nonzero().squeeze(-1)
    out = torch.zeros_like(rollouts.media["states"][:, 1:])
    leader, spec = best[groups[row]], steps.spec_of(rollouts.sampling)
    x = rollouts.media["states"][leader, step]
    out[row, step] = model.velocity(x, rollouts.prompts, groups[row], step, spec, forked=True)
    return out


@torch.no_grad()
def fine_velocities(model: VelocityModel, rollouts: Rollouts, substeps: int) -> Tensor:
    """For each decision the velocity that leads in one step to where the ODE leads in `substeps`, evenly spaced
    before the shift as steps are, from the state before it. 0 elsewhere. [B,steps,*shape]
    """
    if substeps < 1:
        raise PolicyError(f"a step has at least one substep, got {substeps}", where="substeps", hint="substeps=4")
    row, step = rollouts["mask"].nonzero(as_tuple=True)
    spec = steps.spec_of(rollouts.sampling)
    spec = replace(spec, steps=substeps * spec.steps)
    levels, groups = model.levels(spec), rollouts["groups"][row]
    first = x = rollouts.media["states"][row, step]
    wide = (-1, *[1] * (x.dim() - 1))
    for at in (substeps * step + k for k in range(substeps)):
        x = x + model.velocity(x, rollouts.prompts, groups, at, spec) * (levels[at + 1] - levels[at]).view(wide)
    out = torch.zeros_like(rollouts.media["states"][:, 1:])
    out[row, step] = (x - first) / (levels[substeps * (step + 1)] - levels[substeps * step]).view(wide)
    return out
