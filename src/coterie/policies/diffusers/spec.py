"""What a recipe says about a diffusers pipeline: a folder or hub id, or a tiny one made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coterie.policies.diffusers.tiny import SIZE, TinySpec


class LoraSpec(BaseModel):
    """Low-rank adapters of the denoiser (arXiv:2106.09685), trained in place of its weights. Needs the extra `peft`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    target_modules: str | tuple[str, ...] = "attention"
    """`attention` is every projection of attention, `all-linear` every linear layer; else a regular expression, or the
    last parts of names."""


class DiffusersSpec(BaseModel):
    """Which pipeline is the policy. Its denoiser (transformer or UNet) is trained, everything else stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["diffusers"] = "diffusers"
    name: str | None = None
    init: TinySpec | None = None
    architecture: str | None = None
    """FILE.py:CLASS of your own `Architecture`, for a pipeline that is not known here."""
    seed: int = 0
    """Random weights of `init` and of new LoRA adapters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of denoiser and text encoders. The VAE, latents, means and log-probs are float32, and adapters too."""
    device: str = "auto"
    """`auto` is CUDA where there is one, else the CPU."""
    revision: str | None = None
    lora: LoraSpec | None = None
    height: int | None = Field(None, ge=1)
    """Pixels; by default what the pipeline draws by itself. So are width and frames."""
    width: int | None = Field(None, ge=1)
    frames: int | None = Field(None, ge=1)
    """Of a video."""
    max_sequence_length: int | None = Field(None, ge=1)
    """Tokens of a prompt, where the pipeline lets one choose; by default its own number."""
    negative_prompt: str = ""
    """What guidance leads away from (denoise.guidance)."""
    embedded_guidance: float | None = None
    """The scale that a guidance-distilled model is told, as FLUX.1-dev; by default 3.5. No second forward pass."""
    gradient_checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass, block by block."""
    max_forward: int | None = Field(None, ge=1)
    """Most noisy samples that go through the denoiser (and decoded ones, through the VAE) at a time; default: all at
    once. In an update each part's activations are recomputed in the backward pass."""
    offload: bool = False
    """Text encoders and VAE wait on the CPU, and come to the device when they are needed."""
    drop_prompt: float = Field(0.1, ge=0, lt=1)
    """Share of supervised examples without their prompt."""

    @model_validator(mode="before")
    @classmethod
    def _tiny(cls, written: Any) -> Any:
        """A tiny pipeline draws tiny pictures."""
        return {**SIZE, **written} if isinstance(written, Mapping) and "init" in written else written

    @model_validator(mode="after")
    def _one_source(self) -> DiffusersSpec:
        if (self.name is None) == (self.init is None):
            raise ValueError("give exactly one of `name` (a folder or hub id) and `init` (a tiny pipeline)")
        return self
