"""A diffusers pipeline as a policy: prompts encoded once, steps by our samplers, pictures only for the graders."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coterie.errors import PolicyError
from coterie.hardware import device_of
from coterie.policies.base import WHOLE, Part
from coterie.policies.diffusers import files
from coterie.policies.diffusers.architectures import Architecture, Condition, architecture_of
from coterie.policies.diffusers.schedule import Grid, schedule_of
from coterie.policies.diffusers.spec import DiffusersSpec
from coterie.policies.flow.denoising import DenoisingPolicy
from coterie.rollouts import Denoising, Prompt

PROMPTS_KEPT = 256
"""Prompts whose embeddings are kept, those used last."""


class DiffusersPolicy(DenoisingPolicy):
    """A pipeline whose denoiser is trained; its denoising steps are decisions, as those of a flow policy.

    States are in a flow's coordinates (see `schedule`), float32 whatever the weights are in. A prompt is text, and its
    tokens here are the code points. Samples are pictures [H,W,3] or videos [F,H,W,3] from 0 to 1.
    """

    lacks = DenoisingPolicy.lacks | {"fine_gap": "the noise levels of its schedulers are not among those of more steps"}

    def __init__(
        self, pipe: Any, settings: DiffusersSpec, architecture: Architecture, source: Path | None = None
    ) -> None:
        self.pipe, self.settings, self.architecture, self.source = pipe, settings, architecture, source
        self.schedule = schedule_of(pipe.scheduler)
        model: Any = getattr(pipe, architecture.denoiser)
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.has_adapters = settings.lora is not None
        self.model = (files.add_lora(model, settings) if self.has_adapters else model).eval()
        self.version = 0
        self._shape = architecture.shape()
        self._smaller: dict[float, Architecture] = {}
        self._grids: dict[tuple[int, float, float], Grid] = {}
        self._conditions: OrderedDict[tuple[str, bool], Condition] = OrderedDict()

    @classmethod
    def load(cls, spec: DiffusersSpec) -> DiffusersPolicy:
        """The pipeline that the spec names, on its device, its denoiser ready to be trained."""
        device = device_of(spec.device)
        pipe, source = files.load_pipeline(spec)
        pipe.set_progress_bar_config(disable=True)
        architecture = architecture_of(pipe, spec)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                trained = name == architecture.denoiser
                part.requires_grad_(trained).eval()
                if trained or not spec.offload:
                    part.to(device)
        return cls(pipe, spec, architecture, source)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def shape_of(self, spec: Denoising) -> tuple[int, ...]:
        return self.shape if spec.resolution == 1.0 else self._architecture_at(spec.resolution).shape()

    def _architecture_at(self, resolution: float) -> Architecture:
        """How the pipeline is asked for pictures whose sides are that share of the full ones."""
        if resolution == 1.0:
            return self.architecture
        if resolution not in self._smaller:
            height, width = (round(side * resolution) for side in self.architecture.size())
            made = type(self.architecture)(
                self.pipe, self.settings.model_copy(update={"height": height, "width": width})
            )
            try:
                made.shape()
            except PolicyError as error:
                raise PolicyError(
                    error.message, where="denoise.resolution", hint="take a share that gives such sides"
                ) from None
            self._smaller[resolution] = made
        return self._smaller[resolution]

    @property
    def _weights_dtype(self) -> torch.dtype:
        return getattr(torch, self.settings.dtype)

    def levels(self, spec: Denoising) -> Tensor:
        return self._grid(spec).levels

    def _grid(self, spec: Denoising) -> Grid:
        key = (spec.steps, spec.shift, spec.resolution)
        if key not in self._grids:
            asked = self._architecture_at(spec.resolution).timesteps(spec.steps)
            made = self.schedule.grid(spec.steps, spec.shift, asked)
            parts = (made.levels, made.times, made.scales)
            self._grids[key] = Grid(*(part.to(self.device, self.dtype) for part in parts))
        return self._grids[key]

    # Prompts and samples

    def encode(self, prompt: Any) -> tuple[int, ...]:
        """The code points of a prompt."""
        if not isinstance(prompt, str):
            raise PolicyError(
                f"a pipeline draws from text, and the prompt is a {type(prompt).__name__}",
                where="prompt",
                hint="write each prompt as one text",
            )
        return tuple(map(ord, prompt))

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a prompt."""
        return "".join(map(chr, ids))

    @torch.no_grad()
    def encode_completion(self, sample: Any) -> Tensor:
        """A picture [H,W,3] (video [F,H,W,3]) from 0 to 1, as latents."""
        given = torch.as_tensor(np.asarray(sample), dtype=torch.float32, device=self.device)
        pictures = (2 * given - 1).movedim(-1, 0).unsqueeze(0)
        with self._needed("vae"):
            latents = self.architecture.encode(pictures)[0].to(self.dtype)
        if tuple(latents.shape) != self.shape:
            raise PolicyError(
                f"an example of shape {tuple(given.shape)} gives latents of {tuple(latents.shape)}, and the policy "
                f"draws {self.shape}",
                where="encode_completion",
                hint="model.height and model.width say how large pictures are",
            )
        return latents

    @torch.no_grad()
    def samples(self, states: Tensor) -> list[Any]:
        """Decoded pictures and videos, as many at a time as go through the denoiser."""
        out: list[Any] = []
        latents = states.float() * self.schedule.last_scale
        with self._needed("vae"):
            for part in latents.split(self.settings.max_forward or len(latents)):
                pictures = self.architecture.decode(part).movedim(1, -1)
                out += list(((pictures + 1) / 2).clamp(0, 1).cpu().numpy())
        return out

    @contextmanager
    def _needed(self, *names: str) -> Iterator[None]:
        """Parts of the pipeline on the device, and back on the CPU where they wait there."""
        parts = [getattr(self.pipe, name) for name in names] if self.settings.offload else []
        for part in parts:
            part.to(self.device)
        yield
        for part in parts:
            part.to("cpu")

    @torch.no_grad()
    def _condition(self, prompt: str, negative: bool = False) -> Condition:
        """What the denoiser is told of a prompt, encoded alone, so that it does not depend on others."""
        key = (prompt, negative)
        if key not in self._conditions:
            readers = [name for name in self.pipe.components if name.startswith("text_encoder")]
            with self._needed(*(name for name in readers if getattr(self.pipe, name) is not None)):
                found = self.architecture.condition(prompt, negative)
            dtype = self._weights_dtype
            self._conditions[key] = {
                name: value.to(self.device, dtype if value.is_floating_point() else None)
                for name, value in found.items()
            }
            while len(self._conditions) > PROMPTS_KEPT:
                self._conditions.popitem(last=False)
        self._conditions.move_to_end(key)
        return self._conditions[key]

    def _told(self, texts: Sequence[tuple[str, bool]], rows: Tensor) -> Condition:
        """The conditions of rows [N], which name places in `texts`."""
        each = [self._condition(*text) for text in texts]
        return {name: torch.cat([c[name] for c in each])[rows.to(self.device)] for name in each[0]}

    # Sampling and scoring

    def noise(self, seeds: Sequence[Sequence[int]], spec: Denoising) -> Tensor:
        drawn = super().noise(seeds, spec)
        drawn[:, 0] /= self._grid(spec).scales[0]  # a pipeline starts from standard normal numbers
        return drawn

    def _velocity(self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, step: Tensor, spec: Denoising) -> Tensor:
        grid, wide = self._grid(spec), (-1, *[1] * (x.dim() - 1))
        at = grid.levels[step].view(wide), grid.times[step], grid.scales[step].view(wide)
        used, rows = torch.unique(groups.cpu(), return_inverse=True)
        texts = [(self.decode(prompts[g].tokens), False) for g in used.tolist()]
        v = self._predict(x, *at, texts, rows)
        if spec.guidance == 1.0:
            return v
        with torch.no_grad():
            free = self._predict(x, *at, [(self.settings.negative_prompt, True)], torch.zeros_like(rows))
        return free + spec.guidance * (v - free)

    def _predict(
        self, x: Tensor, sigma: Tensor, time: Tensor, scale: Tensor, texts: Sequence[tuple[str, bool]], rows: Tensor
    ) -> Tensor:
        """The velocity at states [N,...]; sigma, scale [N,1,...], time [N], rows [N] name places in `texts`."""

        def forward(part: slice) -> Tensor:
            told = self._told(texts, rows[part])
            given = (x[part] * scale[part]).to(self._weights_dtype)
            return self.architecture.predict(self.model, given, time[part], told).to(self.dtype)

        size = self.settings.max_forward or len(x)
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        if len(parts) > 1 and torch.is_grad_enabled():
            said = [checkpoint(forward, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            said = [forward(part) for part in parts]
        return self.schedule.velocity(torch.cat(said), x, sigma, scale)

    def sft_loss(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Tensor],
        seed: int | None = None,
        part: Part = WHOLE,
    ) -> Tensor:
        """The mean squared error of the velocity, at noise levels and noise drawn from `seed`."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        clean = torch.stack(list(completions))
        wide = (-1, *[1] * (clean.dim() - 1))
        count, whole = len(clean), part.total(len(clean))
        normal, noise, chance = self._supervised_noise(clean, part.first, whole, generator)
        dropped = chance < self.settings.drop_prompt
        sigma, time, scale = (c.to(self.device) for c in self.schedule.anywhere(normal))
        sigma, scale = sigma.view(wide), scale.view(wide)
        texts = [
            (self.settings.negative_prompt, True) if drop else (self.decode(p), False)
            for p, drop in zip(prompts, dropped.tolist(), strict=True)
        ]
        x = (1 - sigma) * clean + sigma * noise
        v = self._predict(x, sigma, time, scale, texts, torch.arange(len(clean)))
        return ((v - (noise - clean)) ** 2).mean() * (count / whole)

    # Weights

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write the adapters, as diffusers has them, or (`merge`, or without adapters) the whole pipeline."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.has_adapters and not merge:
            files.save_lora(self.pipe, self.model, self.architecture, folder)
            return
        model = files.merged(self.model) if self.has_adapters else self.model
        files.save_pipeline(self.pipe, model, self.architecture, folder, self.source)

    def copy_frozen(self) -> DiffusersPolicy:
        """A policy of the same pipeline with an independent copy of its denoiser, which takes no gradient."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model).requires_grad_(False)
        return twin
