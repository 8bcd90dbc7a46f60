from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from coterie.policies import row_counts
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.shared_prefix import SharedPrefix
from coterie.policies.split import SplitModel
from coterie.policies.tiny import TinySpec, build
from coterie.rollout.engines.decoder import CachedDecoder, SharedDecoder
from coterie.rollout.engines.packed import PackedWeights, _Product


def gemma2():
    config = Gemma2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


MODELS = {
    family: lambda f=family: build(TinySpec(family=f, vocabulary="abcdefgh"), 0)[0]
    for family in ("llama", "qwen3", "gpt2")
}
MODELS["gemma2"] = gemma2


class Cached:
    """transformers' cache."""

    def __init__(self, model):
        self.model, self.decoder = model, CachedDecoder(model)


class Shared(Cached):
    """Stretches that rows share."""

    def __init__(self, model):
        shared = SharedPrefix(SplitModel(model))
        assert shared.exact
        self.model, self.decoder = model, SharedDecoder(shared)


@torch.no_grad()
def check(model, state, histories):
    """The state predicts what the model does after each whole history, alone and unpadded."""
    assert len(state) == len(histories)
    for logits, history in zip(state.logits, histories, strict=True):
        assert torch.allclose(logits, model(torch.tensor([history])).logits[0, -1], atol=1e-5)


@pytest.mark.parametrize("kind", [Cached, Shared])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [True, False])
def test_rows_fork_step_and_leave_mid_sequence(kind, name, padded):
    model = MODELS[name]()
    decoder = kind(model).decoder
    histories = [[1, 3, 4, 5, 6], [1, 7, 8] if padded else [1, 7, 8, 9, 3], [1, 9, 3, 4, 4]]
    with torch.inference_mode():
        state = decoder.prefill(histories)
        check(model, state, histories)

        branches = state.fork(torch.tensor([1, 1, 0]))
        grown = [[*histories[1], 5], [*histories[1], 6], [*histories[0], 7]]
        decoder.step([branches], [torch.tensor([5, 6, 7])])
        check(model, branches, grown)
        check(model, state, histories)  # forking left it alone

        twigs = branches.fork(torch.tensor([2, 0, 2]))
        decoder.step([twigs], [torch.tensor([3, 4, 5])])
        check(model, twigs, [[*grown[2], 3], [*grown[0], 4], [*grown[2], 5]])
        check(model, branches, grown)

        leaves = twigs.fork(torch.tensor([1, 1]))
        decoder.step([leaves, state], [torch.tensor([3, 7]), torch.tensor([8, 8, 8])])  # two states in one pass
        check(model, leaves, [[*grown[0], 4, 3], [*grown[0], 4, 7]])
        check(model, state, [[*h, 8] for h in histories])

        leaves.keep(torch.tensor([1]))
        for token in (3, 4, 5, 6, 7):  # past every sliding window
            decoder.step([leaves], [torch.tensor([token])])
        check(model, leaves, [[*grown[0], 4, 7, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize("kind", [Cached, Shared])
@pytest.mark.parametrize("name", MODELS)
def test_rows_that_came_at_different_times_go_on_together(kind, name):
    model = MODELS[name]()
    decoder = kind(model).decoder
    old, new = [[1, 3, 4, 5, 6], [1, 7, 8]], [[1, 9, 3, 4], [1, 4], [1, 8, 8]]
    with torch.inference_mode():
        state = decoder.prefill(old).fork(torch.tensor([0, 1, 1]))
        for token in (3, 4, 5, 6, 7):
            decoder.step([state], [torch.full((3,), token)])
        both = decoder.merge(state, decoder.prefill(new))
        if name == "gemma2" and kind is Cached:
            assert both is None  # its cache forgets what has slid out of the window
            return
        histories = [[*old[i], 3, 4, 5, 6, 7] for i in (0, 1, 1)] + new
        check(model, both, histories)

        def step(histories, tokens):
            decoder.step([both], [torch.tensor(tokens)])
            histories = [[*h, t] for h, t in zip(histories, tokens, strict=True)]
            check(model, both, histories)
            return histories

        histories = step(step(histories, [3, 4, 5, 6, 7, 8]), [8, 7, 6, 5, 4, 3])
        branch = both.fork(torch.tensor([4, 0, 4]))
        decoder.step([branch], [torch.tensor([5, 6, 7])])
        check(model, branch, [[*histories[4], 5], [*histories[0], 6], [*histories[4], 7]])
        both.keep(torch.tensor([5, 1, 3]))
        histories = step([histories[i] for i in (5, 1, 3)], [6, 7, 8])
        both = decoder.merge(decoder.prefill(old[:1]), both)  # the newer ones first
        histories = step([old[0], *histories], [3, 3, 3, 3])
        both.keep(torch.tensor([1, 3]))  # nobody is left that came first
        assert (both.used if kind is Shared else both.cache.get_seq_length() - both.width) <= 4
        step([histories[i] for i in (1, 3)], [5, 6])


def test_mostly_padding_is_not_worth_one_pass():
    model = build(TinySpec(family="llama", vocabulary="abcdefgh", context=2048), 0)[0]
    for decoder in (Cached(model).decoder, Shared(model).decoder):
        with torch.inference_mode():
            long, short = decoder.prefill([[1] + [3] * 900] * 2), decoder.prefill([[1, 3, 4]] * 40)
            assert decoder.merge(long, short) is None
            assert decoder.merge(decoder.prefill([[1, 3, 4]] * 3), short) is not None


def test_a_fork_copies_nothing_of_what_lies_before_it():
    model = MODELS["llama"]()
    decoder = Shared(model).decoder
    with torch.inference_mode():
        state = decoder.prefill([[1, 3, 4, 5], [1, 4, 4]]).fork(torch.tensor([0, 1]))
        decoder.step([state], [torch.tensor([5, 6])])
        prompt, own = state.shared[0].keys[0].data_ptr(), state.keys[0].data_ptr()
        twin = state.fork(torch.tensor([1, 1, 0, 1]))
        assert [s.keys[0].data_ptr() for s in twin.shared] == [prompt, own]


def test_both_ways_on_after_a_fork():
    """The rows forked from and the rows forked to each go on by themselves."""
    model = MODELS["llama"]()
    decoder = Shared(model).decoder
    with torch.inference_mode():
        trunk = decoder.prefill([[1, 3, 4]]).fork(torch.tensor([0]))
        decoder.step([trunk], [torch.tensor([5])])
        branch = trunk.fork(torch.tensor([0]))
        decoder.step([trunk, branch], [torch.tensor([6]), torch.tensor([7])])
        decoder.step([trunk, branch], [torch.tensor([3]), torch.tensor([3])])
        check(model, trunk, [[1, 3, 4, 5, 6, 3]])
        check(model, branch, [[1, 3, 4, 5, 7, 3]])


def test_stretches_nobody_continues_are_let_go():
    model = MODELS["llama"]()
    decoder = Shared(model).decoder
    histories = [[1, 3, 4], [1, 5], [1, 6, 7, 8], [1, 9, 3], [1, 4]]
    with torch.inference_mode():
        state = decoder.prefill(histories).fork(torch.tensor([0, 0, 1, 2, 3, 4]))
        decoder.step([state], [torch.tensor([5, 6, 7, 8, 9, 3])])
        state.keep(torch.tensor([3, 5]))
        assert len(state.shared[0].keys[0]) == 2
        decoder.step([state], [torch.tensor([4, 5])])
        check(model, state, [[*histories[2], 8, 4], [*histories[4], 3, 5]])


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_weights_follow_the_weights(adapted, onednn, monkeypatch):
    monkeypatch.setattr(row_counts, "by_onednn", lambda: onednn)
    policy = CausalLM.load(
        ModelSpec(init=TinySpec(family="qwen3", vocabulary="abcdefgh"), lora=LoraSpec(r=2) if adapted else None)
    )
    decoder = policy.engine.decoder
    assert isinstance(decoder.layers, PackedWeights)
    for change in (0.0, 0.3):
        with torch.no_grad():
            for i, p in enumerate(policy.trainable_parameters()):
                p.add_(change * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        with torch.inference_mode():
            state = decoder.prefill([[1, 3, 4]])
            decoder.step([state], [torch.tensor([5])])
            assert decoder.layers.made is not None
            assert all(layer.out.plain != onednn for layer in decoder.layers.made)
            check(policy.model, state, [[1, 3, 4, 5]])


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_side_by_side(dtype, biased, onednn, monkeypatch):
    """By either library, with and without a scale and biases (those of Qwen2's queries, keys and values)."""
    monkeypatch.setattr(row_counts, "by_onednn", lambda: onednn)
    torch.manual_seed(0)
    parts = [(torch.randn(n, 24).to(dtype), torch.randn(n).to(dtype) if biased else None) for n in (16, 8)]
    x, scale = torch.randn(5, 24).to(dtype), torch.randn(24).to(dtype)
    made = _Product(*parts, scale=scale)
    assert made.plain == (dtype == torch.float32 and not onednn)
    with torch.inference_mode():
        got = made(x)
    sides = [x.double() @ (w * scale).double().T + (0 if b is None else b.double()) for w, b in parts]
    torch.testing.assert_close(got.double(), torch.cat(sides, 1), atol=3e-5 if dtype == torch.float32 else 0.1, rtol=0)
