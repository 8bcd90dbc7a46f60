"""Tiny random policies of several architectures, built here so that no test touches a hub."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
)

from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec, character_tokenizer
from coterie.rollouts import Prompt

CHARACTERS = "0123456789+=abcdef"
SHAPE = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.25,  # spread logits out, so that truncation cuts something
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=8, sliding_window=4, final_logit_softcapping=2.0),
    "gpt2": lambda: GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.25),
    "granite": lambda: GraniteConfig(**SHAPE, logits_scaling=3.0),
    "cohere": lambda: CohereConfig(**SHAPE, logit_scale=0.3),
    "opt": lambda: OPTConfig(
        vocab_size=24,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        dropout=0.3,
        init_std=0.25,
    ),
    "bloom": lambda: BloomConfig(vocab_size=24, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.25),
}
FAMILIES = list(CONFIGS)


@pytest.fixture
def make_policy():
    """make_policy(family, dtype) -> CausalLM with spread-out random weights."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32) -> CausalLM:
        config = CONFIGS[family]()
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager" if family in ("gemma2", "bloom") else "sdpa"
            )
        tokenizer = character_tokenizer(CHARACTERS, 48)
        spec = ModelSpec(init=TinySpec(vocabulary=CHARACTERS))
        return CausalLM(model.to(dtype).eval(), tokenizer, spec)

    return make


@pytest.fixture
def prompts():
    """Three prompts of different lengths, as the table holds them."""
    return [Prompt((1, 5, 6, 13), index=4), Prompt((1, 9), index=0), Prompt((1, 3, 4, 5, 6, 7, 8, 13), index=2)]


SEEDS = [[11, 12, 13], [14, 15], [16, 17, 18, 19]]


@pytest.fixture
def seeds():
    return SEEDS
