"""What a recipe says about a small flow model made here, or loaded from a folder that this package wrote."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FlowShape(BaseModel):
    """A transformer small enough to train from random weights on a CPU; see `coterie.policies.flow.model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(3, ge=1)
    width: int = Field(64, ge=4)
    heads: int = Field(4, ge=1)
    patch: int = Field(2, ge=1)
    """Side of the squares an image is cut in; each is a position of the transformer. Vectors are one position."""

    @model_validator(mode="after")
    def _fits(self) -> FlowShape:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})")
        return self


class FlowSpec(BaseModel):
    """Which flow model is the policy: a folder by `name`, or a small one from scratch by `flow`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    flow: FlowShape | None = None
    seed: int = 0
    """Random weights of a model made here."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Of the weights. Latents, means and log-probs are float32, or float64 with float64 weights."""
    device: str = "auto"
    """`auto` is CUDA where there is one, else the CPU."""
    drop_prompt: float = Field(0.1, ge=0, lt=1)
    """Share of supervised examples without their prompt, from which guidance learns what to lead away from."""

    resolutions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((1.0,), min_length=1)
    """Sizes at which supervised pictures are seen, as shares of the full sides: one is drawn for each batch."""

    @model_validator(mode="after")
    def _one_source(self) -> FlowSpec:
        if (self.name is None) == (self.flow is None):
            raise ValueError("give exactly one of `name` (a folder) and `flow` (a small model from scratch)")
        return self
