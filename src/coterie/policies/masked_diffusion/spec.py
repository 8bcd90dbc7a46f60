"""What a recipe says about a masked diffusion language model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from coterie.policies.loading import SourceSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec, build


class MaskedDiffusionSpec(SourceSpec):
    """A bidirectional transformer with a mask token, from disk, the hub or scratch: any masked LM of transformers, or a
    model that brings its own code, as LLaDA and Dream do (trust_remote_code).
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    remote_classes: ClassVar[tuple[str, ...]] = ("AutoModelForCausalLM", "AutoModel")

    kind: Literal["masked_diffusion"] = "masked_diffusion"
    init: TinyMaskedSpec | None = None
    mask_token_id: int | None = Field(None, ge=0)
    """The token that hides a place, where neither tokenizer nor model config say which."""
    shifted: bool = False
    """Whether what the model says at a place is about the next one, as in models that were made of causal ones (Dream,
    DiffuCoder)."""

    attention: Literal["full", "block_causal"] = "full"
    """Who sees whom: full, every place every other; block_causal, the prompt itself, and a block (unmask.blocks) itself
    and what is before it, as models of block diffusion are trained (arXiv:2503.09573)."""

    def build(self) -> tuple[Any, Any]:
        assert self.init is not None
        return build(self.init, self.seed)
