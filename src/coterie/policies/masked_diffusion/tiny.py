"""Tiny bidirectional models from scratch, with a character tokenizer that has a mask token."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coterie.policies.tiny import CHARACTERS, character_tokenizer


class TinyMaskedSpec(BaseModel):
    """A masked LM small enough to train from random weights on a CPU. `vocabulary` lists the characters it knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["bert", "modernbert"] = "bert"
    """bert has a learned embedding a place, modernbert rotary ones."""
    layers: int = Field(2, ge=1)
    width: int = Field(64, ge=2)
    heads: int = Field(4, ge=1)
    context: int = Field(128, ge=2)
    vocabulary: str = Field(CHARACTERS, min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> TinyMaskedSpec:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("vocabulary repeats a character")
        return self


def build(spec: TinyMaskedSpec, seed: int) -> tuple[Any, Any]:
    """A randomly initialised model (float32, CPU, eval mode) and its tokenizer. The global RNG is left as it was."""
    import torch
    from transformers import AutoModelForMaskedLM

    tokenizer = character_tokenizer(spec.vocabulary, spec.context, mask=True)
    config = _config(spec, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config)
    return model.eval(), tokenizer


def _config(spec: TinyMaskedSpec, vocabulary: int) -> Any:
    from transformers import BertConfig, ModernBertConfig

    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "max_position_embeddings": spec.context,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if spec.family == "bert":
        return BertConfig(
            intermediate_size=4 * spec.width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape
        )
    return ModernBertConfig(
        intermediate_size=2 * spec.width,
        layer_types=["full_attention"] * spec.layers,
        cls_token_id=1,
        sep_token_id=2,
        **shape,
    )
