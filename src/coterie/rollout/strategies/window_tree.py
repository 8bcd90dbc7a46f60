"""Dynamic-TreeRPO's roll-out: inside a sliding window paths fork at every step (arXiv:2509.23352)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.strategies.noise_tree import grown
from coterie.rollout.strategies.sliding_window import window_start
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2509.23352", writes="parent branch", decisions="denoising steps")
def window_tree(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    step: int,
    *,
    depth: int = 4,
    branching: int = 2,
    rise: float = 0.5,
    stride: int = 1,
    every: int = 25,
    move: Literal["forward", "random", "stay"] = "forward",
    leave_out: int = 1,
) -> Rollouts:
    """One tree a prompt: a window of `depth` steps draws noise, and each of these forks every path into `branching`.
    All other steps follow the ODE, before the window on one path from one noise.

    rise: the noise of the window's k-th step, from 0, is multiplied by 1 + rise k / depth; the log-prob knows. stride,
    every, move and leave_out place the window as sliding_window does. rollout.group_size is branching to the depth.
    """
    spec, size = sampling.denoising, len(seeds[0])
    assert spec is not None
    where = "rollout.strategy=window_tree"
    places = spec.steps - leave_out - depth + 1
    if places < 1:
        raise RecipeError(
            f"a window of {depth} steps does not fit {spec.steps} steps of which {leave_out} are left out",
            where=where,
            hint=f"denoise.steps={depth + leave_out}, or a smaller rollout.strategy.depth",
        )
    if (leaves := branching**depth) != size:
        raise RecipeError(
            f"{depth} steps that fork into {branching} make {leaves} leaves, and rollout.group_size is {size}",
            where=where,
            hint=f"rollout.group_size={leaves}",
        )
    first = window_start(step, places, stride=stride, every=every, move=move)
    record("window/start", float(first))
    window = tuple(range(first, first + depth))
    scale = tuple(1 + rise * (s - first) / depth if s in window else 1.0 for s in range(spec.steps))
    spec = replace(spec, stochastic=window, noise_scale=scale)
    return grown(policy, prompts, seeds, replace(sampling, denoising=spec), entropy, spec, window, branching)
