"""Decoding with compiled layers gives what decoding without them gives."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.engines import compiled
from coterie.rollout.engines.base import Request
from coterie.rollout.engines.local import LocalEngine
from coterie.rollouts import Sampling

NO_COMPILER = compiled._no_compiler(torch.device("cpu"))
compiles = pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
# How torch says that the machine was too busy to find out within a minute which instructions it has.
pytestmark = pytest.mark.filterwarnings("ignore:VecISA:UserWarning")
SPEC = {"family": "qwen3", "heads": 4, "kv_heads": 2, "vocabulary": "abcdefgh", "context": 48}


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def load(layers=2, **settings):
    policy = CausalLM.load(ModelSpec(init=TinySpec(layers=layers, **SPEC), compile_decode=True, **settings))
    with torch.no_grad():  # far from equally likely tokens
        policy.model.get_output_embeddings().weight.mul_(20)
    return policy


def change(policy):
    with torch.no_grad():
        for i, p in enumerate(policy.model.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))


def request(prompt, seeds, budget):
    return Request(tuple(prompt), tuple(seeds), Sampling(max_tokens=budget))


MIXED = [request((1, 3, 4, 5), range(16), 9), request((1,), (3,), 4), request((1, 6, 7, 8, 9), (4, 5, 6), 12)]
AT_ONCE = 16
"""Rows come and go. As many as a head is wide, so that torch might take the one for the other."""


def check(policy):
    """Of the compiled engine, what an engine that is not compiled makes of the same weights."""
    plain = LocalEngine(policy.model, policy.tokenizer, shared=policy._shared, max_rows=AT_ONCE)
    policy.engine.max_rows = AT_ONCE
    want, got = plain.generate(MIXED), policy.engine.generate(MIXED)
    assert torch.equal(want.tokens, got.tokens) and torch.equal(want.mask, got.mask)
    assert torch.allclose(want.logp, got.logp, atol=1e-4)
    return got


@compiles
def test_two_graphs_serve_all_layers_any_rows_and_later_weights():
    before, policy = graphs(), load(layers=10)
    first = check(policy)
    change(policy)
    second = check(policy)
    assert not torch.equal(first.logp, second.logp)
    assert graphs() - before == 2


@pytest.mark.parametrize("setting", [False, True])
def test_what_compiled_functions_compute_is_not_kept_for_the_update(monkeypatch, setting):
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)
    policy = CausalLM.load(ModelSpec(init=TinySpec(**SPEC), compile_decode=setting))
    with policy.kept.keeping(2**30):
        policy.generate(MIXED)
    assert bool(policy.kept.calls) is not setting


@compiles
def test_adapters_act_and_are_followed():
    policy = load(lora=LoraSpec(r=2))
    change(policy)
    first = check(policy)
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.mul_(2)
    assert not torch.equal(first.logp, check(policy).logp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_functions_are_the_layers(family, dtype):
    """Without compiling: what stands before attention and after it."""
    model = CausalLM.load(ModelSpec(init=TinySpec(**{**SPEC, "family": family}))).model.to(dtype)
    layers = compiled.CompiledLayers(compiled.Llama(model.get_decoder()))
    layers.enter, layers.leave = compiled._enter, compiled._leave
    draw = torch.Generator().manual_seed(0)
    x, found = torch.randn(2, 3, 64, generator=draw).to(dtype)
    cos, sin = torch.randn(2, 3, 1, 16, generator=draw).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    with torch.inference_mode():
        for want, got in zip(layers.llama.layers, layers.layers(), strict=True):
            for a, b in zip(want.enter(x, None, cos, sin), got.enter(x, None, cos, sin), strict=True):
                assert a.shape == b.shape and torch.allclose(a, b, tolerance, tolerance)
            (total, plus), (made, none) = want.leave(x, found), got.leave(x, found)
            assert none is None and torch.allclose(total + plus, made, tolerance, tolerance)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"engine": "vllm"}, "vLLM"), ({"shared_prefix": False}, "shared_prefix")],
)
def test_it_is_a_setting_of_our_engine(settings, name):
    with pytest.raises(ValueError, match=rf"model\.compile_decode.*{name}"):
        ModelSpec(init=TinySpec(**SPEC), compile_decode=True, **settings)


@pytest.mark.parametrize("settings", [{}, {"sample_dtype": "bfloat16"}])
def test_other_families_are_refused(settings):
    spec = ModelSpec(init=TinySpec(family="gpt2", vocabulary="abcdefgh"), compile_decode=True, **settings)
    with pytest.raises(PolicyError, match=r"built like Llama") as error:
        CausalLM.load(spec)
    assert error.value.where == "model.compile_decode"


def test_an_mlp_gated_otherwise_is_refused(monkeypatch):
    policy = CausalLM.load(ModelSpec(init=TinySpec(**SPEC)))
    policy.model.get_decoder().layers[1].mlp.act_fn = torch.nn.GELU()
    monkeypatch.setattr(compiled, "_no_compiler", lambda device: None)
    with pytest.raises(PolicyError, match="SiLU"):
        LocalEngine(policy.model, policy.tokenizer, shared=policy._shared, compiled=True)


def test_without_a_compiler_the_error_says_so(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(PolicyError, match=r"C\+\+ compiler"):
        load()
