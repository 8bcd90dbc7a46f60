"""A decoding step by compiled functions is the step of the layers themselves, in whatever order rows come and go."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from coterie import native
from coterie.errors import PolicyError
from coterie.native import attention, pieces
from coterie.policies.causal_lm import CausalLM
from coterie.policies.llama import Llama, Norm
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.replay import Replay
from coterie.policies.shared_prefix import SharedPrefix
from coterie.policies.split import SplitModel
from coterie.policies.tiny import TinySpec, character_tokenizer
from coterie.rollout.engines import local
from coterie.rollout.engines.base import Request
from coterie.rollout.engines.decoder import SharedDecoder
from coterie.rollout.engines.fused import FusedStep
from coterie.rollout.engines.packed import PackedWeights
from coterie.rollouts import Prompt, Sampling

pytestmark = pytest.mark.skipif(native.functions() is None, reason="nothing to compile with")

CHARACTERS = "0123456789+=abcdef"
SHAPE = {
    "vocab_size": 24,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": lambda **over: LlamaConfig(**{**SHAPE, **over}, tie_word_embeddings=True),
    "qwen2": lambda **over: Qwen2Config(**{**SHAPE, **over}),
    "qwen3": lambda **over: Qwen3Config(**{**SHAPE, **over}),
    "mistral": lambda **over: MistralConfig(**{**SHAPE, "num_key_value_heads": 1, "sliding_window": 5, **over}),
}
FAMILIES = list(CONFIGS)
HALF = torch.bfloat16
NEAR = {torch.float32: 2e-5, HALF: 0.05}
"""How far logits are from transformers' own in float32, to a part of the largest."""

both_types = pytest.mark.parametrize("dtype", NEAR, ids=["float32", "bfloat16"])


@torch.inference_mode(False)
def model_of(family, dtype=torch.float32, **over):
    config = CONFIGS[family](**over)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(("bias", "norm.weight")):  # of a new model: 0 and 1
                    p.add_(0.3 * torch.randn(p.shape))
    return model.to(dtype)


def policy_of(family, dtype=torch.float32, **over):
    model = model_of(family, dtype, **over)
    return CausalLM(model, character_tokenizer(CHARACTERS, 1024), ModelSpec(init=TinySpec(vocabulary=CHARACTERS)))


@pytest.fixture
def steps(monkeypatch):
    """How many rows each step by compiled functions had."""
    rows = []
    step = FusedStep.__call__

    def stepping(self, layers, ids, positions, states):
        rows.append(len(ids))
        return step(self, layers, ids, positions, states)

    monkeypatch.setattr(FusedStep, "__call__", stepping)
    return rows


@pytest.fixture
def both(monkeypatch, steps):
    """both(make) -> what make() gives with the functions, and without; that they were used, and not."""

    def run(make):
        steps.clear()
        mine = make()
        assert steps
        steps.clear()
        with monkeypatch.context() as patch:
            for module in (native, attention, pieces):
                patch.setattr(module, "functions", lambda *_: None)
            its = make()
        assert not steps
        return mine, its

    return run


@pytest.fixture
def forced(monkeypatch):
    """Tokens are those of their random numbers whatever the logits, so that other rounding draws the same."""

    def draw(logits, sampling, uniforms, *, entropy=False):
        logp = logits.float().log_softmax(-1)
        tokens = 3 + (uniforms * (logp.shape[-1] - 3.01)).long()
        return tokens, logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)

    monkeypatch.setattr(local, "draw", draw)


def mean_of(x, mask):
    return float(x[mask].abs().mean())


def request(prompt, seeds, **sampling):
    return Request(tuple(prompt), tuple(seeds), Sampling(**{"max_tokens": 14, **sampling}))


MIXED = [
    request((1, 3, 4, 5), range(5)),
    request((1,), (13,), max_tokens=9),
    request((1, 6, 7, 8, 9, 3, 3, 5, 4, 11, 12), range(20, 27)),
    request((1, 4), (30, 31, 32), max_tokens=3),
    request((1, 4, 9), range(40, 44), temperature=0.7),
]
STOPS = (2, 3, 5, 7, 11)


def same(mine, its):
    assert torch.equal(mine.tokens, its.tokens) and torch.equal(mine.mask, its.mask)
    assert torch.equal(mine.truncated, its.truncated)
    for name in ("logp", "entropy"):
        torch.testing.assert_close(getattr(mine, name), getattr(its, name), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "max_rows"), [*((f, 3) for f in FAMILIES), ("qwen2", 512), ("mistral", 8)])
def test_samples_log_probs_and_entropies(both, family, max_rows):
    """Few places: rows that waited come in beside others, and rows end at different steps."""

    def make():
        engine = policy_of(family).engine
        engine.max_rows, engine.stop_ids = max_rows, STOPS
        return engine.generate(MIXED, entropy=True)

    mine, its = both(make)
    assert len(mine.mask.sum(-1).unique()) > 4 and len({tuple(t) for t in mine.tokens.tolist()}) > 10
    same(mine, its)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, steps):
    engine = policy_of(family).engine
    engine.max_rows = 3
    made = engine.generate([request(r.prompt, (0,), temperature=0.0) for r in MIXED])
    assert steps
    for r, tokens, mask in zip(MIXED, made.tokens, made.mask, strict=True):
        ids = torch.tensor([r.prompt])
        want = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False, pad_token_id=0
        )
        assert tokens[mask].tolist() == want[0, len(r.prompt) :].tolist()


def decoder_of(model):
    shared = SharedPrefix(SplitModel(model))
    assert shared.exact
    return SharedDecoder(shared)


@torch.no_grad()
def check(model, state, histories):
    """The state predicts what the model does after each whole history, alone and unpadded, in float32."""
    precise = model if model.dtype == torch.float32 else deepcopy(model).float()
    for logits, history in zip(state.logits, histories, strict=True):
        want = precise(torch.tensor([history])).logits[0, -1]
        size = max(1.0, float(want.abs().max()))
        assert logits.dtype == model.dtype
        torch.testing.assert_close(logits.float(), want, rtol=0, atol=NEAR[model.dtype] * size)


@both_types
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_fork_merge_and_leave(family, dtype, steps):
    model = model_of(family, dtype)
    decoder = decoder_of(model)
    histories = [[1, 3, 4, 5, 6, 7, 7], [1, 7, 8], [1, 9, 3, 4, 4]]

    def step(states, tokens):
        decoder.step(states, [torch.tensor(t) for t in tokens])

    with torch.inference_mode():
        state = decoder.prefill(histories)
        branches = state.fork(torch.tensor([1, 1, 0, 1]))
        grown = [[*histories[1], 5], [*histories[1], 6], [*histories[0], 7], [*histories[1], 8]]
        step([branches], [[5, 6, 7, 8]])
        check(model, branches, grown)
        twigs = branches.fork(torch.tensor([2, 0, 2, 3]))
        step([twigs, state], [[3, 4, 5, 6], [8, 8, 8]])  # two states, one of which forked twice
        grown = [[*grown[i], t] for i, t in ((2, 3), (0, 4), (2, 5), (3, 6))]
        histories = [[*h, 8] for h in histories]
        check(model, twigs, grown)
        check(model, state, histories)
        for t in (9, 10, 11, 12, 13, 14):  # past the sliding window
            step([twigs], [[t, t, t + 1, t]])
            grown = [[*h, t + (i == 2)] for i, h in enumerate(grown)]
        check(model, twigs, grown)
        twigs.keep(torch.tensor([3, 1]))
        late = decoder.prefill([[1, 8, 8], [1, 4]]).fork(torch.tensor([0, 1, 1]))
        joined = decoder.merge(state, late)  # rows whose own tokens begin late
        assert joined is not None and joined.late is not None
        histories += [[1, 8, 8], [1, 4], [1, 4]]
        for t in (5, 6, 7, 8, 9, 10, 11):
            step([joined, twigs], [[t, t, t, t + 1, t, t + 2], [t, t + 1]])
            histories = [[*h, t + (0, 0, 0, 1, 0, 2)[i]] for i, h in enumerate(histories)]
        check(model, joined, histories)
        check(model, twigs, [[*grown[3], *range(5, 12)], [*grown[1], *range(6, 13)]])
        forked = joined.fork(torch.tensor([4, 0, 4]))
        step([forked], [[3, 4, 5]])
        check(model, forked, [[*histories[4], 3], [*histories[0], 4], [*histories[4], 5]])
        joined.keep(torch.tensor([5, 3]))
        step([joined], [[6, 7]])
        check(model, joined, [[*histories[5], 6], [*histories[3], 7]])
    assert len(steps) == 17


@both_types
@pytest.mark.parametrize("window", [None, 270])
@torch.inference_mode()
def test_more_keys_than_are_scored_at_once(window, dtype, steps):
    """256 at a time: of a prompt, and of a row's own."""
    over = {} if window is None else {"sliding_window": window, "num_hidden_layers": 1}
    model = model_of("llama" if window is None else "mistral", dtype, **over)
    decoder = decoder_of(model)
    generator = torch.Generator().manual_seed(1)
    prompt, made = (torch.randint(3, 24, (n,), generator=generator).tolist() for n in (300, 265))
    state = decoder.prefill([prompt]).fork(torch.tensor([0, 0, 0]), 10)
    for t in made:
        decoder.step([state], [torch.tensor([t, 23 - t % 20, t])])
    check(model, state, [[*prompt, *made], [*prompt, *(23 - t % 20 for t in made)], [*prompt, *made]])
    assert len(steps) == len(made)


@both_types
@pytest.mark.parametrize("over", [{"head_dim": 32}, {"head_dim": 48}, {"head_dim": 64}, {"head_dim": 128}])
@torch.inference_mode()
def test_heads_of_all_widths_and_more_queries_than_lanes(over, dtype, steps):
    model = model_of("qwen3", dtype, num_hidden_layers=1, **over)
    decoder = decoder_of(model)
    state = decoder.prefill([[1, 5, 6, 7], [1, 9]]).fork(torch.tensor([0] * 5 + [1] * 3))
    decoder.step([state], [torch.arange(3, 11)])
    decoder.step([state], [torch.arange(4, 12)])
    check(model, state, [[*([1, 5, 6, 7] if i < 5 else [1, 9]), 3 + i, 4 + i] for i in range(8)])
    assert steps == [8, 8]


@both_types
@pytest.mark.parametrize("max_rows", [512, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_what_is_kept_for_the_update(both, forced, monkeypatch, family, max_rows, dtype):
    """Rows that have ended go on for a while beside others, and leave nothing in the tables."""
    init = Replay.__init__

    def empty(self, *args):
        init(self, *args)
        for table in (*self.tables, *self.sums):
            table.zero_()

    monkeypatch.setattr(Replay, "__init__", empty)
    prompts = [Prompt(r.prompt) for r in MIXED]
    seeds = [list(r.seeds) for r in MIXED]
    calls = []
    # in bfloat16 what two ways of rounding make of it two layers on, and gradients of what attention was rounded to
    each, of_slopes = (1e-5, 2e-5) if dtype != HALF else (0.03, 0.1)

    def make():
        policy = policy_of(family, dtype)
        policy.engine.max_rows, policy.engine.stop_ids = max_rows, STOPS
        with policy.kept.keeping(2**24):
            rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=12))
        calls.append(policy.kept.calls[0])
        logp = policy.score(rollouts)["logp"]
        torch.testing.assert_close(logp.detach(), rollouts["logp_old"], rtol=0, atol=1e-5)
        (logp * torch.linspace(-1, 2, len(logp)).unsqueeze(1)).sum().backward()
        return rollouts, {n: p.grad for n, p in policy.model.named_parameters()}

    (rollouts, slopes), (others, wanted) = both(make)
    assert torch.equal(rollouts["tokens"], others["tokens"]) and len(rollouts["mask"].sum(-1).unique()) > 3
    got, want = calls
    assert got.filled == want.filled < len(got.tables[0]) and torch.equal(got.line, want.line)
    assert got.rows == want.rows and got.prompts.keys() == want.prompts.keys()
    for mine, its in zip([*got.tables, *got.sums], [*want.tables, *want.sums], strict=True):
        assert mine.dtype == its.dtype
        torch.testing.assert_close(mine, its, rtol=0, atol=each * float(its.abs().max()))
        assert not mine[got.filled :].any()
    for name, slope in wanted.items():
        size = max(1.0, float(slope.abs().max()))
        assert slopes[name].dtype == dtype
        torch.testing.assert_close(slopes[name], slope, rtol=0, atol=of_slopes * size, msg=name)


def precisely(policy, rollouts):
    """Log-probs in float32 by the same weights."""
    other = CausalLM(deepcopy(policy.model).float(), policy.tokenizer, policy.spec)
    with torch.no_grad():
        return other.score(rollouts)["logp"]


@pytest.mark.parametrize("head_dim", [16, 32, 128])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_sampler_and_trainer_agree_in_bfloat16(both, forced, family, head_dim):
    """Better than by torch, which rounds more often; and both are as near to float32. Scores of heads that are no power
    of four wide are of a factor that is no power of two."""

    def make():
        policy = policy_of(family, HALF, head_dim=head_dim)
        with policy.kept.keeping(2**24):
            rollouts = policy.rollout([Prompt(r.prompt) for r in MIXED], [list(range(6))] * 5, Sampling(max_tokens=20))
        mask, sampled = rollouts["mask"], rollouts["logp_old"]
        replayed = policy.score(rollouts)["logp"].detach()
        policy.kept.forget()
        again = policy.score(rollouts)["logp"].detach()
        want = precisely(policy, rollouts)
        return [mean_of(x, mask) for x in (replayed - sampled, again - sampled, sampled - want, again - want)]

    mine, its = both(make)
    assert mine[0] < 1e-3
    assert mine[1] < 0.7 * its[1]
    assert mine[2] < 1.1 * its[2] and mine[3] < 1.1 * its[3]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_without_the_functions_too_training_rounds_as_decoding_does(monkeypatch, family):
    """In bfloat16 what decoding's layers make of hidden states is, but for a few last bits, what training's make."""
    model = model_of(family, HALF)
    for module in (native, attention, pieces):
        monkeypatch.setattr(module, "functions", lambda *_: None)
    llama = Llama(model.model)
    layers = PackedWeights(llama).layers()
    assert layers is not None
    x = (3 * torch.randn(40, 48, generator=torch.Generator().manual_seed(2))).to(HALF)
    angles = llama.angles(x.unsqueeze(0), torch.arange(40).unsqueeze(0))
    with torch.no_grad():
        for mine, its in zip(layers, llama.layers, strict=True):
            assert float((mine.units[0](x) == its.before(x)).float().mean()) > 0.99
            for made, want in zip(mine.enter(x, None, *angles), its.enter(x, None, *angles), strict=True):
                assert made.dtype == HALF and float((made == want).float().mean()) > 0.95


def test_norms_of_another_type_than_what_they_norm():
    """Weights of heads' norms in float32 over bfloat16 are read as what they are."""
    llama = Llama(model_of("qwen3", HALF).model)
    layer = llama.layers[0]
    wide = replace(layer, **{n: Norm(getattr(layer, n).weight.float(), 1e-6) for n in ("q_norm", "k_norm")})
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(2)).to(HALF)
    angles = llama.angles(x.unsqueeze(0), torch.arange(9).unsqueeze(0))
    for mine, its in zip(wide.enter(x, None, *angles), layer.enter(x, None, *angles), strict=True):
        assert mine.dtype == HALF
        torch.testing.assert_close(mine, its, rtol=0, atol=0.02 * float(its.detach().abs().max()))


def test_a_model_that_is_given_another_type_starts_anew(steps):
    """Nothing that was laid out for the type before is used again: weights, angles, memory of tables."""

    def sampled(policy):
        with policy.kept.keeping(2**24):
            rollouts = policy.rollout([Prompt((1, 3, 4)), Prompt((1, 5))], [[1, 2], [3]], Sampling(max_tokens=8))
        logp = policy.score(rollouts)["logp"].detach()
        assert {t.dtype for t in policy.kept.calls[-1].tables} == {policy.model.dtype}
        policy.kept.forget()
        return rollouts["tokens"], rollouts["logp_old"], logp

    policy = policy_of("llama")
    before = sampled(policy)
    policy.model.to(HALF)
    got, want = sampled(policy), sampled(policy_of("llama", HALF))
    assert steps and all(map(torch.equal, got, want)) and not torch.equal(got[1], before[1])


@torch.inference_mode()
def test_processors_whose_products_are_not_of_bfloat16(monkeypatch, steps):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for dtype, used in ((HALF, []), (torch.float32, [2])):
        model = model_of("llama", dtype)
        decoder = decoder_of(model)
        state = decoder.prefill([[1, 3, 4], [1, 5]])
        decoder.step([state], [torch.tensor([5, 6])])
        check(model, state, [[1, 3, 4, 5], [1, 5, 6]])
        assert steps == used


@both_types
def test_adapters_act(both, forced, dtype):
    """Those over bfloat16 are float32."""

    def make():
        init = TinySpec(family="qwen3", vocabulary=CHARACTERS, kv_heads=2)
        spec = ModelSpec(init=init, lora=LoraSpec(r=4, alpha=8), dtype=str(dtype).removeprefix("torch."))
        policy = CausalLM.load(spec)
        assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
        assert dtype in {p.dtype for p in policy.model.parameters()}
        plain = policy.engine.generate(MIXED, entropy=True)
        with torch.no_grad():
            for i, p in enumerate(policy.trainable_parameters()):
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        changed = policy.engine.generate(MIXED, entropy=True)
        width = min(plain.logp.shape[1], changed.logp.shape[1])
        assert (plain.logp[:, :width] - changed.logp[:, :width]).abs().max() > 0.1
        return changed

    mine, its = both(make)
    if dtype != HALF:
        return same(mine, its)
    assert torch.equal(mine.tokens, its.tokens)
    assert mean_of(mine.logp - its.logp, mine.mask) < 0.02 < mean_of(mine.logp, mine.mask)


@both_types
@torch.no_grad()
def test_weights_that_change_between_steps_act_at_once(dtype, steps):
    model = model_of("qwen2", dtype)
    decoder = decoder_of(model)
    decoder.step([decoder.prefill([[1, 3]])], [torch.tensor([4])])
    for p in model.parameters():
        p.mul_(1.1)
    state = decoder.prefill([[1, 3]])
    decoder.step([state], [torch.tensor([4])])
    check(model, state, [[1, 3, 4]])
    assert steps == [1, 1]


@both_types
@pytest.mark.parametrize(
    "over", [{"head_dim": 12}, {"head_dim": 24}, {"intermediate_size": 52}, {"hidden_size": 36}, {"hidden_act": "gelu"}]
)
@torch.inference_mode()
def test_what_it_does_not_compute_the_layers_do(over, dtype, steps):
    model = model_of("llama", dtype, **over)
    decoder = decoder_of(model)
    state = decoder.prefill([[1, 3, 4], [1, 5]])
    for t in (5, 6, 7):
        decoder.step([state], [torch.tensor([t, t + 1])])
    check(model, state, [[1, 3, 4, 5, 6, 7], [1, 5, 6, 7, 8]])
    assert decoder.fused is not None and not steps


@torch.inference_mode()
def test_hooks_on_layers_are_called(steps):
    model = model_of("llama")
    decoder = decoder_of(model)
    state = decoder.prefill([[1, 3, 4]])
    seen = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    decoder.step([state], [torch.tensor([5])])
    handle.remove()
    assert seen and not steps
    decoder.step([state], [torch.tensor([6])])
    check(model, state, [[1, 3, 4, 5, 6]])
    assert steps == [1]


@both_types
@torch.inference_mode()
def test_threads_change_nothing(dtype, steps):
    """Rows enough that there is work for two."""
    model = model_of("qwen3", dtype, num_hidden_layers=1)
    logits = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decoder = decoder_of(model)
            state = decoder.prefill([[1, 3, 4], [1, 5]]).fork(torch.arange(90) % 2)
            decoder.step([state], [torch.arange(90) % 20 + 3])
            logits.append(state.logits)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(*logits, rtol=0, atol=NEAR[dtype] * float(logits[0].abs().max()))
    assert steps == [90, 90]


@both_types
def test_logits_that_are_no_numbers_are_seen(dtype):
    policy = policy_of("llama", dtype)
    with torch.no_grad():
        policy.model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(PolicyError, match="not numbers"):
        policy.engine.generate([request((1, 3), (0,))])
