"""A model of velocities n - x0, and the paths from noise to samples that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from coterie.policies.flow import steps, tail
from coterie.rollouts import Denoising, Prompt


@dataclass
class Stretch:
    """A stretch of denoising of N samples, n steps."""

    states: Tensor
    """[N,n+1,*shape]"""
    logp: Tensor
    """[N,n], 0 where the step drew no noise"""
    std: Tensor
    """[N,n], 0 where the step drew no noise"""
    means: Tensor
    """[N,n,*shape]"""


class VelocityModel:
    """A model that says, of a noisy state x = (1 - s) x0 + s n at noise level s, the velocity n - x0.

    A kind of model has `_velocity`, the shape of its states and their noise levels. Paths are walked in float32
    (float64 for a float64 model).
    """

    model: Any

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _weights_dtype(self) -> torch.dtype:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of latents, means and log-probs."""
        return torch.float64 if self._weights_dtype == torch.float64 else torch.float32

    # What a kind of model says

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state, at full resolution."""
        raise NotImplementedError

    def shape_of(self, spec: Denoising) -> tuple[int, ...]:
        """Of a state. Raises PolicyError where there is none of the spec's resolution."""
        raise NotImplementedError

    def levels(self, spec: Denoising) -> Tensor:
        """Noise levels of the spec's steps, falling. [steps+1]"""
        raise NotImplementedError

    def _velocity(self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, step: Tensor, spec: Denoising) -> Tensor:
        """What `velocity` says of states that differ."""
        raise NotImplementedError

    # Paths

    def noise(self, seeds: Sequence[Sequence[int]], spec: Denoising) -> Tensor:
        """Everything a rollout draws, by its seed alone: where it starts, then a draw a step. [B,steps+1,*shape]

        With shared noise the rollouts of a group start where the first does.
        """
        rows = []
        for group in seeds:
            drawn = [self._draw(seed, spec.steps + 1, spec) for seed in group]
            for row in drawn[1:] if spec.shared_noise else []:
                row[0] = drawn[0][0]
            rows += drawn
        return torch.stack(rows).to(self.device)

    def _draw(self, seed: int, count: int, spec: Denoising) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape_of(spec), generator=generator, dtype=self.dtype)

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        prompts: Sequence[Prompt],
        groups: Tensor,
        spec: Denoising,
        *,
        noise: Tensor,
        first: int = 0,
        last: int | None = None,
        forked: bool = False,
    ) -> Stretch:
        """Take steps first <= s < last from states x [N,*shape]. noise: [N,last-first,*shape], a draw for each step.
        `forked`: some of the states x are equal.
        """
        last = spec.steps if last is None else last
        levels, states, logps, stds, means = self.levels(spec), [x], [], [], []
        for s in range(first, last):
            step = torch.full((len(x),), s, device=x.device)
            v = self.velocity(x, prompts, groups, step, spec, forked=forked and s == first)
            mean, std = steps.transition(
                spec if steps.draws_noise(spec, s) else steps.without_noise(spec), x, v, step, levels
            )
            if bool((std > 0).all()):
                x = mean + std.view(-1, *[1] * (x.dim() - 1)) * noise[:, s - first]
                logps.append(steps.log_density(x, mean, std, spec.reduce))
            else:
                x = mean
                logps.append(torch.zeros_like(std))
            states.append(x)
            stds.append(std)
            means.append(mean)
        return Stretch(*(torch.stack(part, 1) for part in (states, logps, stds, means)))

    @torch.no_grad()
    def coast(
        self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, spec: Denoising, stops: Sequence[int]
    ) -> Tensor:
        """Follow the ODE from x [N,*shape], the state before step stops[0], in one stride from each of `stops` to the
        next. The state at every place from the first to the last; in a stride, where it began. [N,places,*shape]
        """
        levels, states = self.levels(spec), []
        for at, after in pairwise(stops):
            states += [x] * (after - at)
            step = torch.full((len(x),), at, device=x.device)
            x = x + self.velocity(x, prompts, groups, step, spec) * (levels[after] - levels[at])
        return torch.stack([*states, x], 1)

    def velocity(
        self,
        x: Tensor,
        prompts: Sequence[Prompt],
        groups: Tensor,
        step: Tensor,
        spec: Denoising,
        *,
        forked: bool = False,
    ) -> Tensor:
        """The velocity at states [N,*shape] before steps [N], guided as the spec says. With gradient through the
        conditional prediction alone. `forked`: some states may be equal, and are run through the model once.
        """
        groups = groups.to(x.device)
        once = steps.distinct(x, step, groups) if forked else None
        if once is not None:
            first, each = once
            return self.velocity(x[first], prompts, groups[first], step[first], spec)[each]
        return self._velocity(x, prompts, groups, step, spec)

    def finish(self, path: Stretch, prompts: Sequence[Prompt], groups: Tensor, spec: Denoising) -> Stretch:
        """The path with the samples that its last states become by `tail.finish`; states in between repeat the last."""
        x, first = path.states[:, -1], path.std.shape[1]

        def velocity(x: Tensor, step: Tensor, fine: Denoising) -> Tensor:
            return self.velocity(x, prompts, groups, step, fine)

        made = tail.finish(x, spec, first, velocity, self.levels)
        states = torch.stack([*[x] * (spec.steps - first - 1), made], 1)
        nothing = path.std.new_zeros(len(x), spec.steps - first)
        return Stretch(
            torch.cat([path.states, states], 1),
            torch.cat([path.logp, nothing], 1),
            torch.cat([path.std, nothing], 1),
            torch.cat([path.means, states], 1),
        )
