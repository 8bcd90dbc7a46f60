"""A memory of the last prompts: what is known of a prompt is not encoded again, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.engines import memory
from coterie.rollout.engines.base import Request
from coterie.rollouts import Sampling

SAMPLING = Sampling(max_tokens=3)


def policy_of(family: str) -> CausalLM:
    kv_heads = None if family == "gpt2" else 2
    spec = TinySpec(vocabulary="0123456789", layers=2, width=32, heads=4, kv_heads=kv_heads, context=256, family=family)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = CausalLM.load(ModelSpec(init=spec))
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.mul_(4.0 if p.dim() > 1 else 1.0)
    return policy


def asked(lines: list[tuple[int, ...]]) -> list[Request]:
    return [Request(line, (i, i + 100), SAMPLING) for i, line in enumerate(lines)]


@pytest.mark.parametrize("block", [2**20, 1])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_only_what_is_new_is_encoded(family: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "block_elements", lambda device: block)
    policy, rng = policy_of(family), random.Random(0)
    lines = [tuple(rng.randint(3, 12) for _ in range(rng.randint(1, 9))) for _ in range(6)]
    kept = policy.remember()
    for turn in range(5):
        if turn == 2:
            lines.append(lines[0][:3])  # the beginning of what is known: all of it but the last token
        if turn == 3:
            lines[2] = (3, 3, 3, *lines[2][3:])  # another past
        before = kept.encoded
        known = [
            max((len(p) for b in kept.fresh for p in b.prompts if line[: len(p)] == p), default=0) for line in lines
        ]
        got = policy.generate(asked(lines), entropy=True)
        assert kept.encoded - before == sum(len(n) - min(k, len(n) - 1) for n, k in zip(lines, known, strict=True))
        policy.engine.decoder.memory = None
        want = policy.generate(asked(lines), entropy=True)
        policy.engine.decoder.memory = kept
        assert torch.equal(got.tokens, want.tokens) and torch.equal(got.mask, want.mask)
        assert (got.logp - want.logp).abs().max() < 1e-5
        said = [got.tokens[2 * i][got.mask[2 * i]].tolist() for i in range(len(lines))]
        lines = [(*n, *s, *[rng.randint(3, 12)] * rng.randint(0, 6)) for n, s in zip(lines, said, strict=True)]
    kept.close()
    before = kept.encoded
    policy.generate(asked(lines))
    assert kept.encoded == before and not kept.fresh


def test_what_is_beyond_the_limit_is_encoded_again() -> None:
    policy = policy_of("llama")
    kept = policy.remember()
    kept.limit = 7
    policy.generate(asked([(3, 4, 5, 6), (4, 4, 4, 4)]))
    assert not kept.fresh
    policy.generate(asked([(3, 4, 5, 6, 7)]))
    policy.generate(asked([(3, 4, 5, 6, 7, 8, 9)]))
    assert kept.encoded == 8 + 5 + 2
