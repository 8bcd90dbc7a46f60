"""The flow policy: a small flow transformer from scratch, for arrays of a task."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError, did_you_mean
from coterie.hardware import device_of
from coterie.policies.base import WHOLE, Part
from coterie.policies.flow import steps
from coterie.policies.flow.denoising import DenoisingPolicy
from coterie.policies.flow.model import CONFIG, TYPE, FlowTransformer, shrunk
from coterie.policies.flow.spec import FlowSpec
from coterie.rollouts import Denoising, Prompt

PARTS, ZERO = 1000, 20_000
"""A number that a model is told is a token: so many a unit, and the one that is 0."""


class FlowPolicy(DenoisingPolicy):
    """A policy whose velocities are a `FlowTransformer`'s, called with a sample, a noise level and a condition."""

    def __init__(self, model: FlowTransformer, spec: FlowSpec) -> None:
        self.model, self.spec = model.eval(), spec
        self.version = 0

    @classmethod
    def load(
        cls, spec: FlowSpec, shape: Sequence[int] = (), classes: Sequence[str] = (), told: bool = False
    ) -> FlowPolicy:
        """Build a model for samples of `shape` that knows `classes`, or load the folder that the spec names. With
        `told` prompts are samples to be made better.
        """
        device = device_of(spec.device)
        if spec.name is not None:
            return cls(_from_folder(Path(spec.name)).to(device), spec)
        assert spec.flow is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            try:
                model = FlowTransformer(shape, classes, spec.flow, told)
            except ValueError as error:
                raise PolicyError(str(error), where="model.flow.patch") from None
        return cls(model.to(device, getattr(torch, spec.dtype)), spec)

    @property
    def _weights_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return self.model.shape

    def shape_of(self, spec: Denoising) -> tuple[int, ...]:
        return self.shape if spec.resolution == 1.0 else self._smaller(spec.resolution)

    def _smaller(self, resolution: float, where: str = "denoise.resolution") -> tuple[int, ...]:
        """The shape of a picture whose sides are that share of the full ones; `where` the share is written."""
        patch = self.model.size.patch
        if len(self.shape) != 2 or self.model.told:
            raise PolicyError(
                "samples of this model are no pictures, and have one size", where=where, hint="leave it out"
            )
        sides = [side * resolution / patch for side in self.shape]
        if any(not side.is_integer() for side in sides):
            asked = "x".join(f"{patch * side:g}" for side in sides)
            raise PolicyError(
                f"pictures of {asked} are not cut into patches of {patch} by {patch}",
                where=where,
                hint=f"{patch * max(round(sides[0]), 1) / self.shape[0]:g} fits",
            )
        return tuple(int(side) * patch for side in sides)

    def levels(self, spec: Denoising) -> Tensor:
        """Noise levels of the spec's steps, falling. [steps+1]"""
        return steps.noise_levels(spec.steps, spec.shift, self.dtype).to(self.device)

    # Prompts and samples

    def encode(self, prompt: Any) -> tuple[int, ...]:
        """The class that a prompt names; of a model that is told a sample, its numbers in thousandths."""
        if self.model.told:
            return self._read(str(prompt))
        if prompt not in self.model.classes:
            raise PolicyError(
                f"the model knows no class {prompt!r}",
                where="prompt",
                hint=did_you_mean(str(prompt), self.model.classes),
            )
        return (self.model.classes.index(prompt),)

    def _read(self, prompt: str) -> tuple[int, ...]:
        """The numbers of a prompt, as tokens from 0 on."""
        try:
            numbers = [round(float(n) * PARTS) + ZERO for n in prompt.split()]
        except ValueError:
            numbers = []
        count = math.prod(self.model.shape)
        if len(numbers) != count or not all(0 <= n <= 2 * ZERO for n in numbers):
            raise PolicyError(
                f"a prompt of this model is {count} numbers from {-ZERO / PARTS:g} to {ZERO / PARTS:g} with blanks "
                f"between, got {prompt[:40]!r}",
                where="prompt",
            )
        return tuple(numbers)

    def _given(self, prompts: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class, and the sample that it is told, of each of `rows`, which name places in `prompts`."""
        rows = rows.to(self.device)
        if not self.model.told:
            return torch.tensor([p[0] for p in prompts], device=self.device)[rows], None
        told = (torch.tensor(list(prompts), dtype=self.dtype, device=self.device) - ZERO) / PARTS
        return torch.zeros_like(rows), told.view(-1, *self.model.shape)[rows]

    def encode_completion(self, sample: Any) -> Tensor:
        """A supervised example, as latents."""
        return torch.as_tensor(sample, dtype=self.dtype, device=self.device)

    def samples(self, states: Tensor) -> list[Any]:
        """Last states [N,*shape] as graders see them."""
        return list(states.cpu().numpy())

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The name of a prompt's class, or its numbers, for people."""
        if self.model.told:
            return " ".join(f"{(i - ZERO) / PARTS:g}" for i in ids)
        return ", ".join(self.model.classes[i] for i in ids)

    # Velocities

    def _velocity(self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, step: Tensor, spec: Denoising) -> Tensor:
        level = self.levels(spec)[step]
        condition, told = self._given([p.tokens for p in prompts], groups)
        v = self._forward(x, level, condition, told)
        if spec.guidance == 1.0:
            return v
        with torch.no_grad():
            nothing = None if told is None else torch.zeros_like(told)
            free = self._forward(x, level, torch.full_like(condition, self.model.unconditional), nothing)
        return free + spec.guidance * (v - free)

    def _forward(self, x: Tensor, level: Tensor, condition: Tensor, told: Tensor | None) -> Tensor:
        more = () if told is None else (told,)
        return self.model(x, level, condition, *more).to(self.dtype)

    def sft_loss(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Tensor],
        seed: int | None = None,
        part: Part = WHOLE,
    ) -> Tensor:
        """Flow matching: the mean squared error of the velocity, at noise levels and noise drawn from `seed`."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        clean = torch.stack(list(completions))
        known = self.spec.resolutions
        if len(known) > 1 or known[0] != 1.0:
            chosen = known[int(torch.randint(len(known), (1,), generator=generator))]
            clean = shrunk(clean, self._smaller(chosen, "model.resolutions"))
        count, whole = len(clean), part.total(len(clean))
        normal, noise, chance = self._supervised_noise(clean, part.first, whole, generator)
        dropped = chance < self.spec.drop_prompt
        sigma = normal.sigmoid().to(self.device)
        wide = sigma.view(-1, *[1] * (clean.dim() - 1))
        dropped = dropped.to(self.device)
        condition, told = self._given(prompts, torch.arange(count))
        if told is not None:
            told = told.masked_fill(dropped.view(wide.shape), 0.0)
        condition = condition.masked_fill(dropped, self.model.unconditional)
        v = self._forward((1 - wide) * clean + wide * noise, sigma, condition, told)
        return ((v - (noise - clean)) ** 2).mean() * (count / whole)

    # Weights

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write config and weights."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save(folder)

    def copy_frozen(self) -> FlowPolicy:
        """An independent copy that takes no gradient."""
        twin = FlowPolicy(copy.deepcopy(self.model).requires_grad_(False), self.spec)
        twin.version = self.version
        return twin


def _from_folder(folder: Path) -> FlowTransformer:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read {CONFIG}: {error}", where=str(folder), hint="name a folder that a run or an export wrote"
        ) from error
    if config.get("type") != TYPE:
        raise PolicyError(
            "this task samples by denoising, and the folder holds no flow model",
            where=str(folder),
            hint="model='{flow: {layers: 3}}' makes a small one",
        )
    return FlowTransformer.load(folder, config)
