"""How the pipelines of diffusers are asked: what a prompt becomes, how the denoiser is called, how pictures come out.

One class an architecture, chosen by the pipeline's class. To add one, write a class like those below and name it in the
recipe (model.architecture=FILE.py:CLASS); everything else, from schedules to LoRA and saving, needs nothing of it.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from coterie.errors import PolicyError, did_you_mean
from coterie.policies.diffusers.spec import DiffusersSpec
from coterie.user_files import load_file

Condition = dict[str, Tensor]
"""What the denoiser is told of prompts, a row each."""
DISTILLED = 3.5
"""Guidance that a distilled model is told by default, as its pipeline does."""


class Architecture:
    """How a pipeline is asked. Latents are [C,H,W], of videos [C,F,H,W]."""

    denoiser: ClassVar[str] = "transformer"
    """The part that is trained."""
    patch: ClassVar[int] = 1
    """Latents a side of what the denoiser takes as one position."""

    def __init__(self, pipe: Any, spec: DiffusersSpec) -> None:
        self.pipe, self.spec = pipe, spec
        distilled = getattr(self.config, "guidance_embeds", False)
        if spec.embedded_guidance is not None and not distilled:
            raise PolicyError(
                f"{type(pipe).__name__} was not distilled to be told a guidance scale",
                where="model.embedded_guidance",
                hint="denoise.guidance=4.5 guides by a second forward pass",
            )
        self.guidance = (DISTILLED if spec.embedded_guidance is None else spec.embedded_guidance) if distilled else None

    @property
    def config(self) -> Any:
        """Of the denoiser."""
        return getattr(self.pipe, self.denoiser).config

    def shape(self) -> tuple[int, ...]:
        """Of a latent."""
        height, width = self.size()
        factor = self.pipe.vae_scale_factor * self.patch
        self._fits(factor, height, width)
        side = self.pipe.vae_scale_factor
        return (self.config.in_channels, height // side, width // side)

    def size(self) -> tuple[int, int]:
        """Height and width of a picture."""
        usual = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return self.spec.height or usual, self.spec.width or usual

    def _fits(self, factor: int, height: int, width: int) -> None:
        if height % factor or width % factor:
            raise PolicyError(
                f"height and width are multiples of {factor} for this pipeline, got {height} and {width}",
                where="model",
                hint=f"model.height={max(height // factor, 1) * factor} model.width={max(width // factor, 1) * factor}",
            )

    def condition(self, prompt: str, negative: bool) -> Condition:
        """What the denoiser is told of a prompt (of the `negative` one), a row."""
        raise NotImplementedError

    def timesteps(self, steps: int) -> dict[str, Any]:
        """Arguments of the scheduler's set_timesteps beside the number of steps, as the pipeline calls it."""
        return {}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """What the denoiser says about states x [N,C,...] at times [N]. [N,C,...]"""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures from -1 to 1. [N,C,...] -> [N,3,H,W], of videos [N,3,F,H,W]"""
        config = self.pipe.vae.config
        latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return self.pipe.vae.decode(latents, return_dict=False)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """The latents of pictures, what `decode` takes."""
        config = self.pipe.vae.config
        found = self.pipe.vae.encode(pictures)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def _longest(self) -> dict[str, int]:
        """The longest prompt as an argument: the recipe's, or what a call of the pipeline would say."""
        usual = inspect.signature(type(self.pipe).__call__).parameters["max_sequence_length"].default
        return {"max_sequence_length": self.spec.max_sequence_length or usual}

    def _dynamic(self, positions: int) -> float:
        """The shift of noise levels that fits a picture of so many positions."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        get = self.pipe.scheduler.config.get
        return cast(float, calculate_shift(
            positions, get("base_image_seq_len", 256), get("max_image_seq_len", 4096), get("base_shift", 0.5),
            get("max_shift", 1.15),
        ))  # fmt: skip

    def _positions(self) -> int:
        height, width = self.shape()[-2:]
        return (height // self.patch) * (width // self.patch)


class SD3(Architecture):
    """Stable Diffusion 3 and 3.5."""

    patch = 2

    def condition(self, prompt: str, negative: bool) -> Condition:
        words, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, **self._longest()
        )
        return {"encoder_hidden_states": words, "pooled_projections": pooled}

    def timesteps(self, steps: int) -> dict[str, Any]:
        dynamic = self.pipe.scheduler.config.get("use_dynamic_shifting")
        return {"mu": self._dynamic(self._positions())} if dynamic else {}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return model(hidden_states=x, timestep=time, **condition, return_dict=False)[0]


class Flux(Architecture):
    """FLUX.1. Latents are packed, two by two, for the transformer alone."""

    patch = 2

    def shape(self) -> tuple[int, ...]:
        channels, *sides = super().shape()
        return (channels // 4, *sides)

    def condition(self, prompt: str, negative: bool) -> Condition:
        words, pooled, _ = self.pipe.encode_prompt(prompt, None, **self._longest())
        return {"encoder_hidden_states": words, "pooled_projections": pooled}

    def timesteps(self, steps: int) -> dict[str, Any]:
        sigmas = [1.0 + (1.0 / steps - 1.0) * i / max(steps - 1, 1) for i in range(steps)]
        dynamic = self.pipe.scheduler.config.get("use_dynamic_shifting")
        return {"sigmas": sigmas} | ({"mu": self._dynamic(self._positions())} if dynamic else {})

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        n, c, h, w = x.shape
        said = model(
            hidden_states=self.pipe._pack_latents(x, n, c, h, w),
            timestep=time / 1000,
            guidance=None if self.guidance is None else time.new_full((n,), self.guidance),
            txt_ids=x.new_zeros(condition["encoder_hidden_states"].shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(n, h // 2, w // 2, x.device, x.dtype),
            **condition,
            return_dict=False,
        )[0]
        said = said.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return said.reshape(n, c, h, w)


class Sana(Architecture):
    """SANA. Prompts are read with the instruction that the pipeline adds to them."""

    def size(self) -> tuple[int, int]:
        usual = self.config.sample_size * self.pipe.vae_scale_factor
        return self.spec.height or usual, self.spec.width or usual

    def condition(self, prompt: str, negative: bool) -> Condition:
        usual = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        if negative:  # the pipeline reads a negative prompt without instruction and without cutting it
            words, mask = self.pipe._get_gemma_prompt_embeds(
                prompt, self.pipe._execution_device, self.pipe.text_encoder.dtype, **self._longest()
            )
        else:
            words, mask, _, _ = self.pipe.encode_prompt(
                prompt, False, complex_human_instruction=usual, **self._longest()
            )
        return {"encoder_hidden_states": words, "encoder_attention_mask": mask}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        said = model(x, timestep=time * self.config.timestep_scale, **condition, return_dict=False)[0]
        return said[:, : x.shape[1]]  # some predict a variance too


class Wan(Architecture):
    """Wan: videos of 4n + 1 frames."""

    def __init__(self, pipe: Any, spec: DiffusersSpec) -> None:
        super().__init__(pipe, spec)
        if pipe.config.boundary_ratio is not None or pipe.config.expand_timesteps:
            raise PolicyError(
                "this Wan has a second transformer, or a time for each frame, which is not supported",
                where="model",
                hint="use a pipeline of Wan 2.1",
            )

    def shape(self) -> tuple[int, ...]:
        height, width = self.size()
        side, between = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        _, tall, wide = self.config.patch_size
        self._fits(side * max(tall, wide), height, width)
        frames = self.spec.frames or self._usual("num_frames")
        if (frames - 1) % between:
            near = frames // between * between + 1
            raise PolicyError(
                f"a video has {between}n + 1 frames for this pipeline, got {frames}",
                where="model.frames",
                hint=f"model.frames={near}",
            )
        return (self.config.in_channels, (frames - 1) // between + 1, height // side, width // side)

    def size(self) -> tuple[int, int]:
        return self.spec.height or self._usual("height"), self.spec.width or self._usual("width")

    def _usual(self, argument: str) -> int:
        return cast(int, inspect.signature(type(self.pipe).__call__).parameters[argument].default)

    def condition(self, prompt: str, negative: bool) -> Condition:
        words, _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False, **self._longest())
        return {"encoder_hidden_states": words}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return model(hidden_states=x, timestep=time, **condition, return_dict=False)[0]

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (torch.tensor(m).view(1, -1, 1, 1, 1).to(like) for m in (config.latents_mean, config.latents_std))
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._moments(latents)
        return self.pipe.vae.decode(latents * std + mean, return_dict=False)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        latents = self.pipe.vae.encode(pictures).latent_dist.mode()
        mean, std = self._moments(latents)
        return (latents - mean) / std


class StableDiffusion(Architecture):
    """Stable Diffusion 1 and 2, and models fine-tuned from them: a UNet that knows no other condition than words."""

    denoiser = "unet"

    def size(self) -> tuple[int, int]:
        side = self.config.sample_size
        tall, wide = (side, side) if isinstance(side, int) else side
        factor = self.pipe.vae_scale_factor
        return self.spec.height or tall * factor, self.spec.width or wide * factor

    def shape(self) -> tuple[int, ...]:
        height, width = self.size()
        factor = self.pipe.vae_scale_factor * 2 ** (len(self.config.down_block_types) - 1)
        self._fits(factor, height, width)
        return super().shape()

    def condition(self, prompt: str, negative: bool) -> Condition:
        words, _ = self.pipe.encode_prompt(prompt, self.pipe._execution_device, 1, False)
        return {"encoder_hidden_states": words}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return model(x, time, **condition, return_dict=False)[0]


ARCHITECTURES: dict[str, type[Architecture]] = {
    "StableDiffusion3Pipeline": SD3,
    "FluxPipeline": Flux,
    "SanaPipeline": Sana,
    "WanPipeline": Wan,
    "StableDiffusionPipeline": StableDiffusion,
}
"""By the class of the pipeline."""


def architecture_of(pipe: Any, spec: DiffusersSpec) -> Architecture:
    """How to ask a pipeline. Raises PolicyError for a class that is not known."""
    if spec.architecture is not None:
        return _own(spec.architecture)(pipe, spec)
    name = type(pipe).__name__
    if name not in ARCHITECTURES:
        raise PolicyError(
            f"{name} is not known; known are {', '.join(ARCHITECTURES)}",
            where="model",
            hint="write a class like those of coterie.policies.diffusers.architectures (what a prompt becomes, how the "
            "denoiser is called) and name it: model.architecture=FILE.py:CLASS",
        )
    return ARCHITECTURES[name](pipe, spec)


def _own(written: str) -> type[Architecture]:
    import sys

    path, _, name = written.rpartition(":")
    if not path.endswith(".py"):
        raise PolicyError(
            f"an architecture is written FILE.py:CLASS, got {written!r}", where="model.architecture", hint="my.py:Mine"
        )
    module = sys.modules[load_file(path)]
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Architecture)):
        mine = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Architecture)]
        raise PolicyError(
            f"{path} has no class {name!r} that extends Architecture",
            where="model.architecture",
            hint=did_you_mean(name, mine),
        )
    return found
