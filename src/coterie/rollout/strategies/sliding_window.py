"""MixGRPO's roll-out: a few steps draw noise and are trained, all others follow the ODE (arXiv:2507.21802)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2507.21802", decisions="denoising steps")
def sliding_window(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    step: int,
    ended: Callable[[int, str], None] | None = None,
    *,
    size: int = 4,
    stride: int = 1,
    every: int = 25,
    move: Literal["forward", "random", "stay"] = "forward",
    leave_out: int = 1,
    tail: float = 1.0,
) -> Rollouts:
    """Rollouts whose steps in the window are decisions; each is independent of the others.

    size: steps in the window. It starts at the first step and every `every` training steps it moves `stride` steps on,
    from noise to sample, and begins again after the end. The last `leave_out` steps are in no window. move: "random"
    draws its place anew instead, "stay" keeps it at the first step. tail: the share of the steps after the window
    that is taken, with a solver of second order (Flash); 1 takes all of them as ever.
    """
    assert sampling.denoising is not None
    places = sampling.denoising.steps - leave_out - size + 1
    if places < 1:
        raise RecipeError(
            f"a window of {size} steps does not fit {sampling.denoising.steps} steps of which {leave_out} are left out",
            where="rollout.strategy=sliding_window",
            hint=f"denoise.steps={size + leave_out}, or a smaller rollout.strategy.size",
        )
    if not 0 < tail <= 1:
        raise RecipeError(f"tail is a share above 0 and at most 1, got {tail:g}", where="rollout.strategy.tail")
    first = window_start(step, places, stride=stride, every=every, move=move)
    record("window/start", float(first))
    spec = replace(sampling.denoising, stochastic=tuple(range(first, first + size)), tail=tail)
    return policy.rollout(prompts, seeds, replace(sampling, denoising=spec), entropy=entropy, ended=ended)


def window_start(step: int, places: int, *, stride: int, every: int, move: str) -> int:
    """The first step of the window at a training step; there are `places` for it."""
    turn = step // every
    if move == "stay":
        return 0
    if move == "random":
        return int(np.random.default_rng(stream(0, "window", turn)).integers(places))
    stops = -(-places // stride)
    return turn % stops * stride
