"""The mathematics of a denoising step: schedule, transition, log-density, divergence."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from coterie import pieces, registry
from coterie.errors import PolicyError
from coterie.rollouts import Denoising, Sampling


def spec_of(sampling: Sampling) -> Denoising:
    """What a sampling spec says of denoising. Raises PolicyError where it is one of tokens."""
    if sampling.denoising is None:
        raise PolicyError("the sampling spec is one of tokens, and a flow policy denoises", where="sampling")
    return sampling.denoising


def draws_noise(spec: Denoising, step: int) -> bool:
    """Whether the spec lets a step draw noise."""
    return spec.stochastic is None or step in spec.stochastic


def without_noise(spec: Denoising) -> Denoising:
    """The same spec without noise."""
    return replace(spec, sampler="ode", settings=(), noise_scale=None)


def noise_levels(steps: int, shift: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 = sigma_0 > ... > sigma_steps = 0, evenly spaced and then shifted: s -> shift s / (1 + (shift - 1) s).
    [steps + 1]
    """
    even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).to(dtype)


def transition(
    spec: Denoising, x: Tensor, v: Tensor, step: Tensor, levels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean [N,...] and standard deviation [N] of the state after each row's step. x, v: [N,...], step: [N] int,
    levels: [steps + 1], by default those of the spec.
    """
    levels = noise_levels(spec.steps, spec.shift, x.dtype).to(x.device) if levels is None else levels
    wide = (-1, *[1] * (x.dim() - 1))
    sigma, after = (levels[s].view(wide) for s in (step, step + 1))
    rule, settings = _rule(spec.sampler), dict(spec.settings)
    if spec.noise_scale is not None and "noise" in rule.settings:
        scale = torch.tensor(spec.noise_scale, dtype=x.dtype, device=x.device)[step].view(wide)
        settings["noise"] = settings.get("noise", rule.settings["noise"].default) * scale
    mean, std = rule.fn(x, v, sigma, after, levels[1], **settings)
    return mean, std.reshape(-1)


def distinct(x: Tensor, step: Tensor, groups: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which of N states before steps of groups are the first of their kind, [n], and which of these each equals, [N];
    None where all differ. x: [N,...]
    """
    flat = x.detach().flatten(1)
    probe = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64, device=x.device).sqrt()
    key = (flat * probe).sum(-1) + 7919.1 * step + 104729.3 * groups
    kinds, each = torch.unique(key, return_inverse=True)
    if len(kinds) == len(key):
        return None
    first = torch.empty_like(kinds, dtype=torch.long).scatter_(0, each, torch.arange(len(key), device=x.device))
    same = torch.stack([step, groups], 1)
    if not (torch.equal(flat[first][each], flat) and torch.equal(same[first][each], same)):
        return None
    return first, each


def gains(spec: Denoising, levels: Tensor) -> Tensor:
    """By how much each step's mean moves with the velocity: a rule's mean is linear in both. [steps + 1] -> [steps]"""
    unit = torch.ones_like(levels[1:]).unsqueeze(-1)
    mean, _ = transition(spec, torch.zeros_like(unit), unit, torch.arange(spec.steps, device=levels.device), levels)
    return mean.squeeze(-1).abs()


@functools.cache
def _rule(name: str) -> pieces.Piece:
    return registry.get("sampler", name)


def reduced(per_number: Tensor, reduce: str) -> Tensor:
    """[N,...] -> [N], the sum of a row's numbers, or their mean."""
    flat = per_number.flatten(1)
    return flat.sum(-1) if reduce == "sum" else flat.mean(-1)


def log_density(after: Tensor, mean: Tensor, std: Tensor, reduce: str) -> Tensor:
    """log N(after; mean, std^2 I), its D terms averaged ("mean") or added ("sum"). [N,...], [N,...], [N] -> [N]

    "unscaled" is -mean (after - mean)^2, by which every step weighs the same: no density, so that clip ranges do not
    carry over.
    """
    difference = after - mean
    if reduce == "unscaled":
        return -reduced(difference**2, "mean")
    wide = std.view(-1, *[1] * (mean.dim() - 1))
    return reduced(-0.5 * (difference / wide) ** 2 - wide.log() - 0.5 * math.log(2 * math.pi), reduce)


def divergence(mean: Tensor, other: Tensor, std: Tensor, reduce: str) -> Tensor:
    """KL(N(mean, std^2) || N(other, std^2)), reduced as the log-density is. [N,...] -> [N]"""
    wide = std.view(-1, *[1] * (mean.dim() - 1))
    return reduced(0.5 * ((mean - other) / wide) ** 2, reduce)


def entropy(std: Tensor, numbers: int, reduce: str) -> Tensor:
    """Entropy of N(., std^2 I) over `numbers` numbers, averaged or added over them. [N] -> [N]"""
    each = std.log() + 0.5 * math.log(2 * math.pi * math.e)
    return each * numbers if reduce == "sum" else each
