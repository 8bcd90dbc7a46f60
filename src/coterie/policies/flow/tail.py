"""What follows the last step that draws noise, in fewer steps of second order (MixGRPO-Flash, arXiv:2507.21802).

The solver is DPM-Solver++ (2M, arXiv:2211.01095) on the foreseen sample x - s v, for x = (1 - s) sample + s noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from coterie.rollouts import Denoising

Velocity = Callable[[Tensor, Tensor, Denoising], Tensor]
"""Of states [N,*shape] before steps [N] of a spec."""


def count(spec: Denoising) -> int:
    """How many steps take the place of those after the last that draws noise; 0 where these stay as they are."""
    if spec.tail == 1.0 or not spec.stochastic:
        return 0
    left = spec.steps - 1 - max(spec.stochastic)
    return min(left, max(1, int(left * spec.tail)))


def finish(x: Tensor, spec: Denoising, first: int, velocity: Velocity, levels: Callable[[Denoising], Tensor]) -> Tensor:
    """The sample that x [N,*shape], the state before step `first`, becomes. [N,*shape]

    The levels are evenly spaced from here to 0 and then shifted, as a whole run's are: they are steps of a finer run.
    """
    few, left = count(spec), spec.steps - first
    fine = replace(spec, steps=few * spec.steps, noise_scale=None)
    places = [few * spec.steps - left * (few - k) for k in range(few + 1)]
    level = levels(fine)[places]
    before: tuple[Tensor, Tensor] | None = None
    for k in range(few):
        step = torch.full((len(x),), places[k], device=x.device)
        foreseen = x - level[k] * velocity(x, step, fine)
        last = before if k + 1 < few else None  # the last step, to level 0, is of first order
        x, before = advance(x, foreseen, level[k], level[k + 1], last), (foreseen, level[k])
    return x


def advance(x: Tensor, foreseen: Tensor, level: Tensor, after: Tensor, before: tuple[Tensor, Tensor] | None) -> Tensor:
    """One step from a level to another; `before` are what was foreseen a step ago and its level, None for first order.

    With log-SNR l = log((1 - s) / s), h its change in this step and r that in the one before, over h:
    x' = s'/s x - (1 - s') (e^-h - 1) D, where D = (1 + 1/2r) foreseen - 1/2r foreseen before.
    """
    decay = after * (1 - level) / ((1 - after) * level)  # e^-h
    if before is not None and bool(before[1] < 1):  # at level 1 the log-SNR is infinite, and tells nothing of a slope
        was, its_level = before
        ratio = (_log_snr(level) - _log_snr(its_level)) / (_log_snr(after) - _log_snr(level))
        foreseen = foreseen + (foreseen - was) / (2 * ratio)
    return after / level * x - (1 - after) * (decay - 1) * foreseen


def _log_snr(level: Tensor) -> Tensor:
    return ((1 - level) / level).log()
