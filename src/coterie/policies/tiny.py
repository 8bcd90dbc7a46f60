"""Tiny models from scratch, with a character tokenizer: for demos, tests and tasks that need no pre-training."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAD, BOS, EOS, MASK = "<pad>", "<bos>", "<eos>", "<mask>"
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"


class TinySpec(BaseModel):
    """A model small enough to train from random weights on a CPU. `vocabulary` lists the characters it knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["llama", "qwen3", "gpt2"] = "llama"
    layers: int = Field(2, ge=1)
    width: int = Field(64, ge=2)
    heads: int = Field(4, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    context: int = Field(128, ge=2)
    vocabulary: str = Field(CHARACTERS, min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> TinySpec:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})")
        if self.kv_heads is not None and (self.family == "gpt2" or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}, and gpt2 has none")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("vocabulary repeats a character")
        return self


def build(spec: TinySpec, seed: int) -> tuple[Any, Any]:
    """A randomly initialised model (float32, CPU, eval mode) and its tokenizer. The global RNG is left as it was."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = character_tokenizer(spec.vocabulary, spec.context)
    config = _config(spec, len(tokenizer))
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.eval(), tokenizer


def _config(spec: TinySpec, vocabulary: int) -> Any:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    if spec.family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=spec.width,
            n_layer=spec.layers,
            n_head=spec.heads,
            n_positions=spec.context,
        )
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.width,
        "intermediate_size": 4 * spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads or spec.heads,
        "head_dim": spec.width // spec.heads,
        "max_position_embeddings": spec.context,
    }
    return LlamaConfig(**shape) if spec.family == "llama" else Qwen3Config(**shape)


def character_tokenizer(characters: str, context: int, *, mask: bool = False) -> Any:
    """A fast tokenizer with one token a character, after <pad> 0, <bos> 1, <eos> 2 and, with `mask`, <mask> 3. A prompt
    starts with <bos>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, EOS, MASK] if mask else [PAD, BOS, EOS]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    # No unknown token: a character it does not know is an error (`encode` names it), never a silent hole.
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK if mask else None,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
