"""A group's prompt encoded once gives the log-probs, entropies and gradients of separate rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
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

from coterie.microbatches import microbatches
from coterie.policies import causal_lm, packing, two_part
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec, character_tokenizer
from coterie.policies.two_part import Layout, Rule, two_part_attention
from coterie.rollouts import Prompt, Rollouts, Sampling

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


def forest(seed: int = 0) -> Rollouts:
    """Trees of depth 3 in any order, children before parents too; groups of one and of three without forks.

    Forks at 0, in the middle and at the end, several in one place; holes in the mask, cut ends, a row without a
    decision. After a fork nothing is the same, so that what rows have in common is what they forked with.
    """
    rng = np.random.default_rng(seed)
    prompts = [Prompt((1, *rng.integers(3, 24, n - 1).tolist())) for n in (5, 2, 9, 3)]
    rows: list[tuple[int, list[int], int, int]] = []

    def grow(group: int, parent: int, branch: int) -> int:
        kept = rows[parent][1][:branch] if branch >= 0 else []
        others = {tuple(tokens[: len(kept) + 1]) for g, tokens, *_ in rows if g == group}
        first = next(t for t in rng.permutation(np.arange(3, 24)).tolist() if (*kept, t) not in others)
        rows.append((group, [*kept, first, *rng.integers(3, 24, rng.integers(0, 6)).tolist()], parent, branch))
        return len(rows) - 1

    level = [grow(group, len(rows), -1) for group in (0, 1, 2, 0, 3, 3, 3)]
    level = [row for row in level if rows[row][0] in (0, 2)]
    for depth in range(3):
        children = []
        for number, row in enumerate(level):
            n = len(rows[row][1])
            cuts = [0, n // 2, n, max(n - 1, 0), n // 2]
            children += [grow(rows[row][0], row, int(rng.choice(cuts))) for _ in range(rng.integers(number < 2, 4))]
        level = children[: 5 - depth]
    order = rng.permutation(len(rows))
    width = max(len(tokens) for _, tokens, *_ in rows)
    tokens, mask = rng.integers(3, 24, (len(rows), width)), np.zeros((len(rows), width), dtype=bool)
    for here, row in enumerate(order):
        n = len(rows[row][1])
        tokens[here, :n] = rows[row][1]
        mask[here, :n] = rng.random(n) < 0.85
    mask[0] = False
    columns = {
        "groups": np.array([rows[r][0] for r in order]),
        "tokens": tokens,
        "mask": mask,
        "lengths": mask.sum(-1),
        "parent": np.argsort(order)[[rows[r][2] for r in order]],
        "branch": np.array([rows[r][3] for r in order]),
    }
    return Rollouts(prompts, {k: torch.as_tensor(v) for k, v in columns.items()}, Sampling(temperature=0.8))


def beginnings(rollouts: Rollouts) -> set[tuple[int, ...]]:
    """Group and completion so far, for every token that is fed of a row."""
    out = set()
    for group, tokens, mask in zip(*(rollouts[n].tolist() for n in ("groups", "tokens", "mask")), strict=True):
        fed = max((t for t, on in enumerate(mask) if on), default=0)
        out |= {(group, *tokens[: t + 1]) for t in range(fed)}
    return out


def fed(policy: CausalLM, rollouts: Rollouts) -> int:
    """Tokens that go through the embedding."""
    seen: list[Tensor] = []
    hook = policy.model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    policy.score(rollouts)
    hook.remove()
    return sum(ids.numel() for ids in seen)


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


@pytest.fixture(params=["blocks", "whole", "cut"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Also with blocks so small that every row and every 64 prompt positions are one of their own; and with groups cut
    by the lengths of their rows wherever that saves padding.
    """
    if request.param == "cut":
        monkeypatch.setattr(packing, "_BUNDLES", 2**40)
    elif request.param == "blocks":
        monkeypatch.setattr(two_part, "block_elements", lambda device: 1)
    return request.param


TABLES: dict[str, Callable[[], Rollouts]] = {"mixed": table, "even": lambda: table("even"), "forest": forest}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("family", SHARING)
def test_float64_values_and_gradients_equal_those_of_plain_rows(
    monkeypatch: pytest.MonkeyPatch, blocks: str, family: str, case: str
) -> None:
    policy, rollouts = make(family, torch.float64), TABLES[case]()
    exact_norms(monkeypatch, policy)
    assert policy.shares_prefix
    ours = results(policy, rollouts)
    assert gap(ours, plain(policy, rollouts)) < (3e-6 if family in EAGER else 1e-9)


@pytest.mark.parametrize("case", ["mixed", "forest"])
@pytest.mark.parametrize("family", SHARING)
def test_float32_values_and_gradients_equal_those_of_padded_rows(family: str, case: str) -> None:
    sharing, apart, rollouts = make(family), make(family, shared_prefix=False), TABLES[case]()
    assert sharing.shares_prefix and not apart.shares_prefix
    assert gap(results(sharing, rollouts), results(apart, rollouts)) < 1e-5
    with torch.no_grad():
        a, b = (p.score(rollouts, {"logp"})["logp"] for p in (sharing, apart))
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("case", ["mixed", "forest"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_gradient_checkpointing_recomputes_with_the_layout_of_the_forward(family: str, case: str) -> None:
    plainly, checked = make(family), make(family, gradient_checkpointing=True)
    calls: list[int] = []
    checked.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    one, other = TABLES[case](), table("even")
    first, second = checked.score(one)["logp"], checked.score(other)["logp"]  # two graphs alive at once
    wanted = [plainly.score(t)["logp"] for t in (one, other)]
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


@pytest.mark.parametrize("case", ["mixed", "forest"])
def test_adapters_get_the_gradients_of_padded_rows(case: str) -> None:
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
        rollouts = TABLES[case]()
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
    rollouts = table()
    prompts = [rollouts.prompts[g].tokens for g in (0, 1, 2, 4)]
    completions = 8 + 0 + 4 + 3 + 2 + 0 + 6 + 8 + 5  # all of a row before its last decision
    assert fed(make("llama"), rollouts) == sum(map(len, prompts)) + completions


@pytest.mark.parametrize("seed", range(4))
def test_each_token_of_a_tree_goes_through_the_model_once(seed: int) -> None:
    policy, rollouts = make("llama"), forest(seed)
    prompts = sum(len(rollouts.prompts[g].tokens) for g in rollouts["groups"][rollouts["mask"].any(-1)].unique())
    want = prompts + len(beginnings(rollouts))
    flat = Rollouts(rollouts.prompts, {n: rollouts[n] for n in ("groups", "tokens", "mask")}, rollouts.sampling)
    assert fed(policy, rollouts) == want < fed(policy, flat)
    heads: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        watched = causal_lm.score_linear
        patch.setattr(causal_lm, "score_linear", lambda h, *rest: heads.append(len(h)) or watched(h, *rest))
        policy.score(rollouts)
    rows, columns = rollouts["mask"].nonzero(as_tuple=True)
    decisions = {
        (int(rollouts["groups"][r]), *rollouts["tokens"][r, : t + 1].tolist())
        for r, t in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    assert heads == [len(decisions)] and len(decisions) < len(rows)


def test_forests_of_many_shapes_are_scored_as_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing, apart = make("qwen2-sliding", torch.float64), make("qwen2-sliding", torch.float64, shared_prefix=False)
    exact_norms(monkeypatch, apart)
    with torch.no_grad():
        for seed in range(1, 30):
            rollouts = forest(seed)
            some = rollouts.rows(torch.arange(len(rollouts)) % 3 != seed % 3)  # parents may be gone
            for part in (rollouts, some):
                a, b = (p.score(part)["logp"] for p in (sharing, apart))
                assert (a - b).abs().max() < 1e-9, seed


def test_rows_whose_parent_is_gone_share_with_their_siblings() -> None:
    prompts, tokens = [Prompt((1, 5, 6))], torch.tensor([[7, 8, 9, 3, 5], [7, 8, 9, 4, 5], [7, 8, 5, 4, 3]])
    columns = {"groups": torch.zeros(3, dtype=torch.int64), "tokens": tokens, "mask": tokens > 0}
    rollouts = Rollouts(prompts, columns, Sampling())
    policy = make("llama")
    assert fed(policy, rollouts) == 3 + 3 * 4
    for branch, count in (([3, 3, 2], 3 + 7), ([2, 2, 2], 3 + 8), ([-1, -1, -1], 3 + 12), ([-1, 0, 0], 3 + 12)):
        assert fed(policy, rollouts.with_columns(branch=torch.tensor(branch))) == count


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_forks_that_the_tokens_belie_share_the_prompt_alone(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    policy, rollouts = make(family, torch.float64), table()
    exact_norms(monkeypatch, policy)
    tokens = rollouts["tokens"].clone()
    tokens[:, 0] = torch.arange(10) + 3  # no two rows of a group begin alike
    rollouts = rollouts.with_columns(tokens=tokens)
    g = torch.Generator().manual_seed(5)
    for parent in (torch.arange(10).roll(1), torch.randint(10, (10,), generator=g), torch.full((10,), 10**6)):
        wrong = rollouts.with_columns(parent=parent, branch=torch.randint(-1, 12, (10,), generator=g))
        assert fed(policy, wrong) == fed(policy, rollouts)
        assert gap(results(policy, wrong), plain(policy, rollouts)) < 1e-9


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
@pytest.mark.parametrize("case", TABLES)
def test_attention_passes_gradcheck_in_float64(blocks: str, case: str, rule: Rule) -> None:
    rollouts = TABLES[case]()
    branch = rollouts["branch"] if "branch" in rollouts else None
    packed = packing.pack_groups(
        [p.tokens for p in rollouts.prompts], rollouts["groups"], rollouts["tokens"], rollouts["mask"], branch
    )
    assert (packed.twins is not None) == (case == "forest")
    assert (packed.layout.again is not None) == (case == "forest" or (blocks, case) == ("cut", "mixed"))
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


def test_the_longest_rows_of_groups_are_bundled_by_themselves() -> None:
    prompts = [tuple(range(100 + n)) for n in range(6)]
    groups = torch.arange(6).repeat_interleave(8)
    lengths = torch.tensor([90, 97, 95, 110, 105, 98, 400, 800]).repeat(6)
    mask = torch.arange(801) < lengths.unsqueeze(-1) + 1
    packed = packing.pack_groups(prompts, groups, torch.zeros(48, 801, dtype=torch.long), mask)
    groups_of = Counter[tuple[int, int, bool]]()
    for b in packed.layout.bundles:
        groups_of[b.rows, b.length, b.repeated] += b.groups
    assert groups_of == {(4, 98, False): 6, (2, 110, True): 6, (1, 400, True): 6, (1, 800, True): 6}
    assert packed.ids.shape[1] == sum(map(len, prompts)) + int(lengths.sum())
    even = packing.pack_groups(prompts, groups, torch.zeros(48, 801, dtype=torch.long), torch.ones_like(mask))
    assert not any(b.repeated for b in even.layout.bundles) and even.layout.again is None


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


def test_micro_batches_count_what_forks_have_in_common_once_and_keep_trees_together() -> None:
    """Two trunks of 8 decisions, each with three forks at 6 that go on for 4, and one of these forked again at 9."""
    parent = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2, 3])
    branch = torch.tensor([-1, -1, 6, 6, 6, 6, 6, 6, 9, 9])
    lengths = torch.tensor([8, 8, 10, 10, 10, 10, 10, 10, 11, 11])
    mask = torch.arange(11) < lengths.unsqueeze(-1)
    columns = {"groups": torch.zeros(10, dtype=torch.int64), "lengths": lengths, "mask": mask}
    rollouts = Rollouts([Prompt((1, 2, 3))], columns)
    tree = 8 + 3 * 4 + 2
    assert len(microbatches(rollouts, 3 + 2 * tree, shared_prefix=True)) > 1
    forked = rollouts.with_columns(parent=parent, branch=branch)
    assert [len(p) for p in microbatches(forked, 3 + 2 * tree, shared_prefix=True)] == [10]
    parts = microbatches(forked, 3 + tree, shared_prefix=True)
    assert sorted(p.tolist() for p in parts) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert sorted(torch.cat(microbatches(forked, 3 + tree - 1, shared_prefix=True)).tolist()) == list(range(10))
    assert [len(p) for p in microbatches(forked, 1, shared_prefix=True)] == [1] * 10
    assert [p.tolist() for p in microbatches(forked, 60)] == [p.tolist() for p in microbatches(rollouts, 60)]


@pytest.mark.parametrize("case", ["mixed", "forest"])
def test_micro_batches_do_not_change_the_gradient(case: str) -> None:
    policy, whole = make("qwen3"), TABLES[case]()
    rollouts = whole.with_columns(lengths=whole["mask"].sum(-1))
    want = torch.autograd.grad(policy.score(rollouts)["logp"].sum(), policy.trainable_parameters())
    for part in microbatches(rollouts, 25, shared_prefix=True):
        policy.score(rollouts.rows(part))["logp"].sum().backward()
    for x, p in zip(want, policy.trainable_parameters(), strict=True):
        assert p.grad is not None and torch.allclose(p.grad, x, atol=1e-4, rtol=1e-4)
