"""Forward-process learning: a decision is a draw of noise on a finished sample (arXiv:2509.16117, arXiv:2509.25050)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coterie.pieces import strategy
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2509.16117", decisions="denoising steps")
def renoised(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    draws: int = 4,
) -> Rollouts:
    """Samples by the ODE, whose decisions are `draws` draws of noise on each: at x = (1 - s) x0 + s n the log-prob is
    -mean (v(x, s) - (n - x0))^2, and no step of the path is learned.

    The noise levels s are those before steps of the path, one drawn from each of as many equal parts of it; s and n are
    the rollout's own and the same for policy, sampler and reference. Learning does not depend on how samples are drawn,
    so rollout.sampler has nothing to say, and guidance is for sampling alone. kl_ref and mean_gap are mean squared
    distances of velocities.
    """
    assert sampling.denoising is not None
    spec = replace(sampling.denoising, stochastic=())
    groups = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(s) for s in seeds]))
    start = policy.noise(seeds, spec)[:, 0]
    path = policy.denoise(start, prompts, groups, spec, noise=start.new_zeros(len(start), spec.steps), forked=True)
    noise, at = drawn(policy, seeds, draws, spec)
    return policy.renoised(prompts, groups, path.states[:, -1], noise, at, sampling)


def drawn(policy: Any, seeds: list[list[int]], draws: int, spec: Denoising) -> tuple[Tensor, Tensor]:
    """Noise [B,draws,*shape] of each rollout and the steps that it stands before [B,draws], by its seed alone."""
    noise, at = [], []
    for seed in (s for group in seeds for s in group):
        generator = torch.Generator().manual_seed(stream(0, "renoised", seed))
        noise.append(torch.randn(draws, *policy.shape_of(spec), generator=generator, dtype=policy.dtype))
        at.append((torch.arange(draws) + torch.rand(draws, generator=generator)) / draws * spec.steps)
    return torch.stack(noise).to(policy.device), torch.stack(at).long().clamp_max(spec.steps - 1).to(policy.device)
