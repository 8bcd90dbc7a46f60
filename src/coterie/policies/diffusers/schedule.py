"""From a scheduler of diffusers to the noise levels of a flow.

A pipeline's state at coefficients a, s (x = a x0 + s n) is scale times the flow's state at noise level sigma:
sigma = s / (a + s), scale = a + s, and (1 - sigma) x0 + sigma n = x / scale. Flow-matching models have scale 1. So
every sampler works on diffusion models too, and log-probs of both differ by a constant a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.errors import PolicyError


@dataclass(frozen=True)
class Grid:
    """The steps of a path."""

    levels: Tensor
    """Noise levels, falling. [S+1]"""
    times: Tensor
    """What the denoiser is told before each step. [S]"""
    scales: Tensor
    """The pipeline's state over the flow's. [S+1]"""


class Schedule(Protocol):
    last_scale: float
    """Of the last state of a path."""

    def grid(self, steps: int, shift: float, options: dict[str, Any]) -> Grid:
        """The pipeline's own steps, further moved towards noise by `shift`; in float64 on the CPU. `options` are
        arguments of the scheduler's set_timesteps.
        """

    def velocity(self, output: Tensor, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        """n - x0 from what the denoiser said about the flow's state x. [N,...]; sigma, scale: [N,1,...]"""

    def anywhere(self, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sigma, time and scale for training, from standard normal numbers. [N] each"""


class FlowSchedule:
    """Flow matching: the denoiser predicts n - x0."""

    last_scale = 1.0

    def __init__(self, scheduler: Any) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        config = scheduler.config
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # a solver of higher order, on a flow's levels
            self.own: Any = FlowMatchEulerDiscreteScheduler(
                num_train_timesteps=config.num_train_timesteps, shift=config.get("flow_shift") or 1.0
            )
        else:
            self.own = FlowMatchEulerDiscreteScheduler.from_config(config)
        self.train_steps = self.own.config.num_train_timesteps

    def grid(self, steps: int, shift: float, options: dict[str, Any]) -> Grid:
        self.own.set_timesteps(**({"num_inference_steps": steps} | options))
        levels = self.own.sigmas.double().cpu().clamp(max=1.0)
        times = self.own.timesteps.double().cpu()
        if shift != 1.0:
            levels = shift * levels / (1 + (shift - 1) * levels)
            times = levels[:-1] * self.train_steps
        return Grid(levels, times, torch.ones_like(levels))

    def velocity(self, output: Tensor, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        return output

    def anywhere(self, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = normal.sigmoid()
        return sigma, sigma * self.train_steps, torch.ones_like(sigma)


class DiffusionSchedule:
    """Denoising diffusion: the denoiser predicts the noise, the clean sample or a mixture ("v_prediction")."""

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDIMScheduler

        config, name = dict(scheduler.config), type(scheduler).__name__
        if name not in ("DDIMScheduler", "DDPMScheduler"):
            config |= {"clip_sample": False, "thresholding": False}  # of other solvers these are not settings
        for setting in ("clip_sample", "thresholding"):
            if config.get(setting):
                raise PolicyError(
                    f"the scheduler has {setting}=true: its steps are no Gaussian around a smooth mean",
                    where=name,
                    hint=f'set "{setting}": false in scheduler/scheduler_config.json',
                )
        own = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
        self.own, self.predicts = own, own.config.prediction_type
        self.alphas = own.alphas_cumprod.double()
        if self.predicts == "epsilon" and bool((self.alphas <= 0).any()):
            raise PolicyError(
                "the schedule ends in pure noise, where a model that predicts noise says nothing of the sample",
                where=name,
                hint='set "rescale_betas_zero_snr": false in scheduler/scheduler_config.json',
            )
        self.final = torch.as_tensor(own.final_alpha_cumprod).double()
        self.last_scale = float(self._coefficients(self.final)[1])

    def _coefficients(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """sigma and scale where the cumulative product of alphas is this."""
        a, s = alphas.sqrt(), (1 - alphas).sqrt()
        return s / (a + s), a + s

    def grid(self, steps: int, shift: float, options: dict[str, Any]) -> Grid:
        if shift != 1.0:
            raise PolicyError(
                "denoise.shift moves the noise levels of a flow, and this model knows those it was trained on",
                where="denoise.shift",
                hint="leave denoise.shift out; the scheduler's timestep_spacing says where steps lie",
            )
        self.own.set_timesteps(steps)
        times = self.own.timesteps.long().cpu()
        levels, scales = self._coefficients(torch.cat([self.alphas[times], self.final.view(1)]))
        return Grid(levels, times.double(), scales)

    def velocity(self, output: Tensor, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        if self.predicts == "epsilon":
            return (output - x) / (1 - sigma)
        if self.predicts == "sample":
            return (x - output) / sigma
        return scale * (output + (2 * sigma - 1) * scale * x)

    def anywhere(self, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = len(self.alphas)
        times = (torch.special.ndtr(normal) * count).long().clamp(0, count - 1)
        sigma, scale = (c.to(normal) for c in self._coefficients(self.alphas.to(times.device)[times]))
        return sigma, times.to(normal), scale


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a pipeline's scheduler. Raises PolicyError for one that is neither of a flow nor of diffusion."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if (flow and not scheduler.config.invert_sigmas) or scheduler.config.get("use_flow_sigmas"):
        return FlowSchedule(scheduler)
    if not flow and hasattr(scheduler, "alphas_cumprod"):
        return DiffusionSchedule(scheduler)
    raise PolicyError(
        f"its scheduler, {type(scheduler).__name__}, is neither of flow matching nor of diffusion",
        where="model",
        hint="save the pipeline with FlowMatchEulerDiscreteScheduler, DDIMScheduler or DDPMScheduler",
    )
