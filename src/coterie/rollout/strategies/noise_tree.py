"""BranchGRPO's roll-out: the denoising paths of a group fork at some steps, each fork by noise (arXiv:2509.06040)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2509.06040", writes="parent branch", decisions="denoising steps")
def noise_tree(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    splits: tuple[int, ...] = (0, 3, 6, 9),
    branching: int = 2,
) -> Rollouts:
    """One tree a prompt: at each of the steps `splits` every path forks into `branching`, which draw their own noise in
    that step and after it. Where no path has forked yet there is one, from one noise.

    rollout.group_size is branching to the number of splits. What paths share is computed once. A rollout is a path from
    root to leaf; `parent` is the first rollout below the node it forked at, `branch` the step.
    """
    spec, size = sampling.denoising, len(seeds[0])
    assert spec is not None
    where = "rollout.strategy=noise_tree"
    if not splits or list(splits) != sorted(set(splits)) or not 0 <= splits[0] <= splits[-1] < spec.steps:
        raise RecipeError(
            f"splits are ascending and from 0 to {spec.steps - 1}, got {list(splits)}",
            where=where,
            hint="rollout.strategy.splits=[0,1]",
        )
    if branching ** len(splits) != size:
        raise RecipeError(
            f"{len(splits)} splits into {branching} make {branching ** len(splits)} leaves, and rollout.group_size is "
            f"{size}",
            where=where,
            hint=f"rollout.group_size={branching ** len(splits)}",
        )
    return grown(policy, prompts, seeds, sampling, entropy, spec, splits, branching)


def grown(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    spec: Denoising,
    splits: tuple[int, ...],
    branching: int,
) -> Rollouts:
    """The table of a tree of each prompt, denoised by `spec`. A node draws what its first leaf would draw."""
    noise, size = policy.noise(seeds, spec), len(seeds[0])
    leaves = torch.arange(len(noise), device=noise.device).view(len(prompts), size)
    edges = [0, *splits, spec.steps]
    parts: list[Any] = []
    for level, (first, last) in enumerate(pairwise(edges)):
        if first == last:  # it forks at the first step
            continue
        width = branching**level
        nodes = leaves[:, :: size // width].flatten()
        x = parts[-1].states[nodes, -1] if parts else noise[nodes, 0] if width == 1 else _root(noise, leaves, width)
        owner = torch.arange(len(prompts)).repeat_interleave(width)
        draws = noise[nodes, first + 1 : last + 1]
        grew = policy.denoise(x, prompts, owner, spec, noise=draws, first=first, last=last, forked=level > 0)
        each = {name: value.repeat_interleave(size // width, 0) for name, value in vars(grew).items()}
        parts.append(type(grew)(**each))
    joined = {name: torch.cat([getattr(p, name) for p in parts], 1) for name in vars(parts[0]) if name != "states"}
    states = torch.cat([parts[0].states[:, :1], *(p.states[:, 1:] for p in parts)], 1)
    groups = torch.arange(len(prompts)).repeat_interleave(size)
    made = policy.table(prompts, groups, type(parts[0])(states=states, **joined), sampling, entropy=entropy)
    leaf = torch.arange(size, device=noise.device)
    parent, branch = leaf.clone(), torch.full_like(leaf, -1)
    for level, step in enumerate(splits):
        below = branching ** (len(splits) - 1 - level)
        forked = leaf // below % branching > 0
        parent = torch.where(forked, leaf // (below * branching) * (below * branching), parent)
        branch = torch.where(forked, step, branch)
    made.columns["parent"] = (leaves[:, :1] + parent).flatten()
    made.columns["branch"] = branch.repeat(len(prompts))
    return made


def _root(noise: torch.Tensor, leaves: torch.Tensor, width: int) -> torch.Tensor:
    """Where a tree starts that forks in its first step: every child from the noise of the tree's first leaf."""
    return noise[leaves[:, 0], 0].repeat_interleave(width, 0)
