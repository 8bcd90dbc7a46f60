"""A group's prompt encoded once gives the log-probs, entropies and gradients of separate rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from coterie.policies import packing, two_part
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec, character_tokenizer
from coterie.policies.two_part import Layout, Rule, two_part_attention
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.update import microbatches

CHARACTERS = "0123456789+=abcdef"
SHAPE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen2-sliding": lambda: Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=3, layer_types=MIXED),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=4),
    "mistral-narrow": lambda: MistralConfig(**SHAPE, sliding_window=1),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=8, sliding_window=4, attn_logit_softcapping=1.5),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=5, layer_types=MIXED),
    "gpt2": lambda: GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.25),
    "bloom": lambda: BloomConfig(vocab_size=24, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.25),
}
SHARING = [name for name in CONFIGS if name != "bloom"]
EAGER = {"gemma2", "bloom"}  # their plain attention takes a float32 softmax whatever it is given


def make(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> CausalLM:
    config = CONFIGS[family]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if family in EAGER else "sdpa")
    spec = ModelSpec(init=TinySpec(vocabulary=CHARACTERS), **settings)
    return CausalLM(model.to(dtype).eval(), character_tokenizer(CHARACTERS, 64), spec)


def table(case: str = "mixed") -> Rollouts:
    """Groups out of order and of sizes 3, 1, 4, 2; 1 to 9 tokens a completion; holes; a prompt that nobody answers."""
    g = torch.Generator().manual_seed(3)
    sizes = {"mixed": [7, 2, 12, 1, 5], "even": [6] * 5}[case]
    prompts = [Prompt((1, *torch.randint(3, 24, (n - 1,), generator=g).tolist())) for n in sizes]
    groups = torch.tensor([2, 0, 4, 0, 1, 2, 2, 0, 4, 2])
    lengths = torch.tensor([9, 1, 5, 4, 3, 1, 8, 9, 2, 6] if case == "mixed" else [6] * 10)
    mask = torch.arange(9) < lengths.unsqueeze(-1)
    if case == "mixed":
        mask[0, 3:6] = mask[3, 0] = mask[6, 7] = mask[8] = False  # holes; a cut end; a row without a decision
    tokens = torch.randint(3, 24, mask.shape, generator=g)
    return Rollouts(prompts, {"groups": groups, "tokens": tokens, "mask": mask}, Sampling(temperature=0.8))


def weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def results(policy: CausalLM, rollouts: Rollouts) -> tuple[dict[str, Tensor], list[Tensor]]:
    return _with_gradients(policy, policy.score(rollouts, {"logp", "entropy"}), rollouts["mask"])


def plain(policy: CausalLM, rollouts: Rollouts) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One forward of the model itself a row, without padding."""
    mask = rollouts["mask"]
    out = {name: torch.zeros(mask.shape, dtype=policy.model.dtype) for name in ("logp", "entropy")}
    for b in range(len(mask)):
        prompt = rollouts.prompts[int(rollouts["groups"][b])].tokens
        ids = torch.tensor([[*prompt, *rollouts["tokens"][b].tolist()]])
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / rollouts.sampling.temperature
        logp = logits.log_softmax(-1)
        out["logp"][b] = logp.gather(-1, rollouts["tokens"][b].unsqueeze(-1)).squeeze(-1) * mask[b]
        out["entropy"][b] = -(logp.exp() * logp).sum(-1) * mask[b]
    return _with_gradients(policy, out, mask)


def _with_gradients(policy: CausalLM, scored: dict[str, Tensor], mask: Tensor) -> Any:
    w = weights(mask, scored["logp"].dtype)
    loss = (w * (scored["logp"] + 0.3 * scored["entropy"])).sum()
    gradients = torch.autograd.grad(loss, policy.trainable_parameters())
    return {name: x.detach() for name, x in scored.items()}, list(gradients)


def gap(a: tuple[dict[str, Tensor], list[Tensor]], b: tuple[dict[str, Tensor], list[Tensor]]) -> float:
    """Largest difference of values and, relative to the largest gradient where that exceeds 1, of gradients."""
    scale = max(1.0, *(float(x.abs().max()) for x in b[1]))
    values = [float((a[0][name] - b[0][name]).abs().max()) for name in b[0]]
    return max(*values, *(float((x - y).abs().max()) / scale for x, y in zip(a[1], b[1], strict=True)))


def exact_norms(monkeypatch: pytest.MonkeyPatch, policy: CausalLM) -> None:
    """transformers' RMSNorm computes in float32 whatever it is given: let these compute in float64."""
    for kind in {type(m) for m in policy.model.modules() if type(m).__name__.endswith("RMSNorm")}:
        shift = 1.0 if "Gemma" in kind.__name__ else 0.0

        def forward(self: Any, x: Tensor, shift: float = shift) -> Tensor:
            eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
            return nn.functional.rms_norm(x, x.shape[-1:], self.weight + shift, eps)

        monkeypatch.setattr(kind, "forward", forward)


@pytest.fixture(params=["blocks", "whole"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with blocks so small that every row and every 64 prompt positions are one of their own."""
    if request.param == "blocks":
        monkeypatch.setattr(two_part, "block_elements", lambda device: 1)


@pytest.mark.parametrize("case", ["mixed", "even"])
@pytest.mark.parametrize("family", SHARING)
def test_float64_values_and_gradients_equal_those_of_plain_rows(
    monkeypatch: pytest.MonkeyPatch, blocks: None, family: str, case: str
) -> None:
    policy = make(family, torch.float64)
    exact_norms(monkeypatch, policy)
    assert policy.shares_prefix
    ours = results(policy, table(case))
    assert gap(ours, plain(policy, table(case))) < (3e-6 if family in EAGER else 1e-9)


@pytest.mark.parametrize("family", SHARING)
def test_float32_values_and_gradients_equal_those_of_padded_rows(family: str) -> None:
    sharing, apart = make(family), make(family, shared_prefix=False)
    assert sharing.shares_prefix and not apart.shares_prefix
    assert gap(results(sharing, table()), results(apart, table())) < 1e-5
    with torch.no_grad():
        a, b = (p.score(table(), {"logp"})["logp"] for p in (sharing, apart))
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_gradient_checkpointing_recomputes_with_the_layout_of_the_forward(family: str) -> None:
    plainly, checked = make(family), make(family, gradient_checkpointing=True)
    calls: list[int] = []
    checked.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    other = table("even")
    first, second = checked.score(table())["logp"], checked.score(other)["logp"]  # two graphs alive at once
    wanted = [plainly.score(t)["logp"] for t in (table(), other)]
    for got, want in ((first, wanted[0]), (second, wanted[1])):
        ours, theirs = (
            torch.autograd.grad(x.sum(), p.trainable_parameters(), retain_graph=True)
            for x, p in ((got, checked), (want, plainly))
        )
        again = torch.autograd.grad(got.sum(), checked.trainable_parameters())
        assert torch.allclose(got, want, atol=1e-5)
        largest = max(float(b.abs().max()) for b in theirs)
        assert all((a - b).abs().max() < 1e-5 * largest for a, b in zip(ours, theirs, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert len(calls) == 6 and calls[0] == calls[2] == calls[3]
    assert checked.model.config._attn_implementation != "coterie"


def test_adapters_get_the_gradients_of_padded_rows() -> None:
    parts = []
    for shared in (True, False):
        spec = ModelSpec(
            init=TinySpec(family="qwen3", width=32, kv_heads=2, vocabulary=CHARACTERS),
            lora=LoraSpec(r=4, alpha=8, dropout=0.5),
            shared_prefix=shared,
        )
        policy = CausalLM.load(spec)
        with torch.no_grad():
            for i, p in enumerate(policy.trainable_parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        assert policy.shares_prefix == shared
        rollouts = table()
        rollouts = rollouts.with_columns(tokens=rollouts["tokens"] % 20)
        rollouts.prompts[:] = [Prompt(tuple(t % 20 for t in p.tokens)) for p in rollouts.prompts]
        parts.append(results(policy, rollouts))
    assert gap(*parts) < 1e-5


def test_bfloat16_is_as_close_to_float32_as_padded_rows_are() -> None:
    want = make("qwen3").score(table())["logp"]
    errors = [
        (make("qwen3", torch.bfloat16, shared_prefix=shared).score(table())["logp"] - want).abs().mean().item()
        for shared in (True, False)
    ]
    assert errors[0] < 1.5 * errors[1]


def test_each_prompt_is_encoded_once_and_nothing_is_padded() -> None:
    policy, rollouts = make("llama"), table()
    seen: list[Tensor] = []
    policy.model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    policy.score(rollouts)
    prompts = [rollouts.prompts[g].tokens for g in (0, 1, 2, 4)]
    fed = 8 + 0 + 4 + 3 + 2 + 0 + 6 + 8 + 5  # all of a row before its last decision
    assert seen[0].shape == (1, sum(map(len, prompts)) + fed)


def test_groups_of_one_and_models_that_cannot_share_keep_separate_rows() -> None:
    assert not make("bloom").shares_prefix
    policy, rollouts = make("llama"), table()
    shapes: list[Any] = []
    policy.model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    policy.score(rollouts.rows(torch.tensor([0, 1, 2, 4])))
    assert shapes[0][0] == 4


def test_a_window_that_only_the_mask_knows_is_not_shared() -> None:
    config = LlamaConfig(**SHAPE)
    config.sliding_window = 40  # wider than the self-check's rows; Llama's layers never hand it to attention
    policy = CausalLM(
        AutoModelForCausalLM.from_config(config).eval(),
        character_tokenizer(CHARACTERS, 64),
        ModelSpec(init=TinySpec(vocabulary=CHARACTERS)),
    )
    assert not policy.shares_prefix


def test_the_example_of_prefix_grouper() -> None:
    """D=1, one prompt token, two completions of one: the second does not see the first."""
    sizes = torch.tensor([1])
    layout = Layout((two_part.Bundle(0, 1, 1, 2, 1, 1, sizes),))
    q, k, v = (torch.tensor(x).view(3, 1, 1) for x in ([1.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, 3.0]))
    out = two_part_attention(q, k, v, layout, Rule(1.0)).flatten()
    assert out.tolist() == pytest.approx([1.0, 1.268941, 2.462117], abs=1e-6)


@pytest.mark.parametrize("rule", [Rule(0.3), Rule(0.3, window=3), Rule(0.5, softcap=0.7), Rule(0.3, 6, 2.0)])
@pytest.mark.parametrize("case", ["mixed", "even"])
def test_attention_passes_gradcheck_in_float64(blocks: None, case: str, rule: Rule) -> None:
    rollouts = table(case)
    packed = packing.pack_groups(
        [p.tokens for p in rollouts.prompts], rollouts["groups"], rollouts["tokens"], rollouts["mask"]
    )
    length, g = packed.ids.shape[1], torch.Generator().manual_seed(0)
    q, k = (torch.randn(length, heads, 2, generator=g, dtype=torch.float64, requires_grad=True) for heads in (4, 2))
    v = torch.randn(length, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)  # values may have another width
    assert torch.autograd.gradcheck(
        lambda *x: two_part_attention(*x, packed.layout, rule), (q, k, v), fast_mode=True, atol=1e-7
    )


def test_a_bundle_holds_groups_of_similar_shape_and_every_row_once() -> None:
    g = torch.Generator().manual_seed(0)
    prompts = [tuple(range(1, int(n) + 1)) for n in torch.randint(1, 200, (30,), generator=g)]
    groups = torch.arange(30).repeat_interleave(4)
    lengths = torch.randint(1, 50, (120, 1), generator=g)
    mask = torch.arange(50) < lengths
    tokens = torch.arange(6000).view(120, 50)
    packed = packing.pack_groups(prompts, groups, tokens, mask)
    layout = packed.layout
    assert packed.ids.shape[1] == sum(map(len, prompts)) + int((lengths - 1).sum())
    assert layout.token is not None and layout.slot is not None and layout.real is not None
    assert torch.equal(layout.token[layout.slot], torch.arange(packed.ids.shape[1]))
    assert int(layout.real.sum()) == packed.ids.shape[1]
    assert sum(b.groups for b in layout.bundles) == 30 and len(layout.bundles) < 30
    later = mask & (torch.arange(50) > 0)
    before = torch.roll(tokens, 1, 1)[later]  # what predicts a decision is the token just before it
    assert torch.equal(packed.ids[0, packed.at[later[mask]]], before)


def test_micro_batches_count_a_shared_prompt_once_and_keep_groups_together() -> None:
    prompts = [Prompt(tuple(range(n))) for n in (10, 20, 30, 40)]
    groups = torch.arange(4).repeat(4)
    lengths = torch.full((16,), 5)
    rollouts = Rollouts(prompts, {"groups": groups, "lengths": lengths})

    def cost(part: Tensor) -> int:
        return int(lengths[part].sum()) + sum(len(prompts[g].tokens) for g in groups[part].unique())

    for budget, count in ((1000, 1), (90, 3), (60, 4), (50, 5), (1, 16)):
        parts = microbatches(rollouts, budget, shared_prefix=True)
        assert sorted(torch.cat(parts).tolist()) == list(range(16)) and len(parts) == count
        assert all(cost(part) <= budget or len(part) == 1 for part in parts)
    assert [len(p) for p in microbatches(rollouts, 1, whole_groups=True, shared_prefix=True)] == [4] * 4


def test_micro_batches_do_not_change_the_gradient() -> None:
    policy, whole = make("qwen3"), table()
    rollouts = whole.with_columns(lengths=whole["mask"].sum(-1))
    want = torch.autograd.grad(policy.score(rollouts)["logp"].sum(), policy.trainable_parameters())
    for part in microbatches(rollouts, 25, shared_prefix=True):
        policy.score(rollouts.rows(part))["logp"].sum().backward()
    for x, p in zip(want, policy.trainable_parameters(), strict=True):
        assert p.grad is not None and torch.allclose(p.grad, x, atol=1e-4, rtol=1e-4)
