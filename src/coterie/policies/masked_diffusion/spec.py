"""What a recipe says about a masked diffusion language model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from coterie.policies.loading import SourceSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec, build


class MaskedDiffusionSpec(SourceSpec):
    """A bidirectional transformer with a mask token: any masked LM of transformers, from disk, the hub or scratch."""

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"

    kind: Literal["masked_diffusion"] = "masked_diffusion"
    init: TinyMaskedSpec | None = None
    mask_token_id: int | None = Field(None, ge=0)
    """The token that hides a place, where neither tokenizer nor model config say which."""

    def build(self) -> tuple[Any, Any]:
        assert self.init is not None
        return build(self.init, self.seed)
