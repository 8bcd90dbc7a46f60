"""What every engine must do, whichever it is: ours over shared stretches, over transformers' cache, a copy, vLLM."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.engines.base import Request
from coterie.rollout.engines.vllm import VLLMEngine, _Made, merged_weights
from coterie.rollouts import Sampling

TINY = TinySpec(family="qwen3", width=64, heads=2, vocabulary="abcdefgh", context=48)


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


ENGINES = {
    "shared": {},
    "cached": {"shared_prefix": False},
    "copy": {"sample_dtype": "bfloat16"},
    "vllm": {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.2, "enforce_eager": True}},
}
needs_vllm = pytest.mark.skipif(not has_vllm(), reason="vLLM and a GPU are not here")


@pytest.fixture(scope="module", params=[pytest.param(e, marks=needs_vllm if e == "vllm" else ()) for e in ENGINES])
def policy(request):
    found = CausalLM.load(ModelSpec(init=TINY, **ENGINES[request.param]))
    with torch.no_grad():  # far from equally likely tokens
        found.model.get_output_embeddings().weight.mul_(20)
    return found


def request(prompt, seeds, **sampling):
    return Request(tuple(prompt), tuple(seeds), Sampling(**{"max_tokens": 8, **sampling}))


MIXED = [request((1, 3, 4, 5), (1, 2)), request((1,), (3,)), request((1, 6, 7, 8, 9, 3, 3), (4, 5, 6))]


def rows(made):
    return [t[m].tolist() for t, m in zip(made.tokens, made.mask, strict=True)]


def logits_after(policy, prompt, completion):
    """[T,V] that predict a completion's tokens, by transformers alone."""
    ids = torch.tensor([[*prompt, *completion]], device=policy.device)
    with torch.no_grad():
        return policy.model(ids).logits[0, len(prompt) - 1 : -1].float()


def close(policy, got, want):
    """Log-probs of an engine that is not exact are those of another precision."""
    assert (got - want).abs().max() < (1e-5 if policy.exact else 0.3)


def test_rows_come_in_order_of_request_then_seed_right_padded(policy):
    made = policy.generate(MIXED)
    assert made.tokens.shape == made.mask.shape == made.logp.shape and len(made.tokens) == 6
    lengths = made.mask.sum(-1)
    assert torch.equal(made.mask, torch.arange(made.mask.shape[1], device=lengths.device) < lengths.unsqueeze(-1))
    assert (made.logp[~made.mask] == 0).all() and made.logp.isfinite().all() and (made.logp <= 0).all()
    alone = policy.generate([MIXED[1]])
    assert rows(alone)[0] == rows(made)[2]


def test_the_log_probs_are_those_of_the_distribution_sampled_from(policy):
    for sampling in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 1.3, "min_p": 0.1}):
        spec = Sampling(max_tokens=8, **sampling)
        made = policy.generate([Request((1, 3, 4, 5), (1, 2, 3), spec)])
        for number, completion in enumerate(rows(made)):
            logits = logits_after(policy, (1, 3, 4, 5), completion) / spec.temperature
            cut = logits.clone()
            if spec.top_k:
                cut[logits < logits.topk(spec.top_k).values[:, -1:]] = -torch.inf
            if spec.top_p < 1:
                probs, order = logits.softmax(-1).sort(descending=True)
                outside = probs.cumsum(-1) - probs >= spec.top_p
                cut = cut.scatter(-1, order, torch.where(outside, -torch.inf, logits.gather(-1, order)))
            if spec.min_p:
                probs = logits.softmax(-1)
                cut[probs < spec.min_p * probs.amax(-1, keepdim=True)] = -torch.inf
            want = cut.log_softmax(-1)[range(len(completion)), completion]
            live = want.isfinite()  # near a cut, another precision may keep another token
            assert live.all() or not policy.exact
            close(policy, made.logp[number, : len(completion)][live], want[live])


def test_greedy_takes_the_likeliest_token(policy):
    for r in MIXED:
        made = policy.generate([request(r.prompt, (0,), temperature=0.0)])
        (completion,) = rows(made)
        logits = logits_after(policy, r.prompt, completion)
        best = logits.max(-1).values - logits[range(len(completion)), completion]
        assert best.max() < (1e-5 if policy.exact else 0.3)


def test_it_samples_from_the_distribution(policy):
    count = 3000
    made = policy.generate([request((1, 3), range(count), max_tokens=1)])
    want = logits_after(policy, (1, 3), [0])[0].softmax(-1)
    counts = torch.bincount(made.tokens[:, 0], minlength=len(want)).float()
    spread = (want * (1 - want) / count).sqrt() + (0 if policy.exact else 0.02)
    assert ((counts / count - want).abs() <= 4.5 * spread + 1e-3).all()


def test_budget_and_end_of_sequence_end_a_row(policy):
    made = policy.generate([request((1, 3, 4), range(40), max_tokens=6)])
    eos = policy.tokenizer.eos_token_id
    ended = torch.tensor([eos in r for r in rows(made)], device=made.truncated.device)
    assert torch.equal(made.truncated, ~ended) and 0 < int(ended.sum()) < 40
    assert all(r.index(eos) == len(r) - 1 for r in rows(made) if eos in r)
    assert all(len(r) == 6 for r in rows(made) if eos not in r)


def test_a_stop_string_ends_a_row_after_the_token_that_completes_it(policy):
    made = policy.generate([request((1, 3, 4), range(40), max_tokens=12, stop=("d",))])
    texts = [policy.tokenizer.decode(r).replace("<pad>", "") for r in rows(made)]
    hit = [t for t, cut in zip(texts, made.truncated.tolist(), strict=True) if not cut and "d" in t]
    assert hit and all(t.index("d") == len(t) - 1 for t in hit)


def test_forbidden_tokens_are_never_sampled_and_leave_the_support(policy):
    before = policy.generate([request((1, 3, 4), range(30))])
    banned = before.tokens[before.mask].mode().values.item()
    policy.engine.forbid = (banned,)
    try:
        made = policy.generate([request((1, 3, 4), range(30))])
    finally:
        policy.engine.forbid = ()
    assert banned not in made.tokens[made.mask].tolist()
    first = rows(made)[0]
    logits = logits_after(policy, (1, 3, 4), first)
    logits[:, banned] = -torch.inf
    close(policy, made.logp[0, : len(first)], logits.log_softmax(-1)[range(len(first)), first])


def test_it_may_come_back_early_and_leaves_the_others_as_they_are(policy):
    wanted = request((1, 3, 4), range(12), max_tokens=24)
    made = policy.generate([wanted], until=lambda progress: int(progress.ended.sum()) >= 3)
    assert made.ended is not None and 3 <= int(made.ended.sum()) < 12
    assert (made.mask.sum(-1)[made.ended] > 0).all()
    assert len(policy.generate([wanted]).tokens) == 12  # nothing of the broken-off call is left over


def test_new_weights_are_sampled_from(policy):
    head = policy.model.get_output_embeddings().weight
    wanted = [request((1, 3, 4), (0, 1))]
    before = policy.generate(wanted)
    with torch.no_grad():
        head.neg_()
    after = policy.generate(wanted)
    with torch.no_grad():
        head.neg_()
    assert rows(after) != rows(before) and rows(policy.generate(wanted)) == rows(before)


def test_what_cannot_be_completed_is_refused(policy):
    with pytest.raises(PolicyError, match="empty prompt"):
        policy.generate([request((), (0,))])
    with pytest.raises(PolicyError, match="max_tokens"):
        policy.generate([request((1,), (0,), max_tokens=0)])
    with pytest.raises(PolicyError, match="fills the model's context"):
        policy.generate([request([3] * 48, (0,))])
    with pytest.raises(PolicyError, match="nothing to generate"):
        policy.generate([request((1,), ())])
    assert policy.generate([request([3] * 45, (0,), max_tokens=20)]).mask.sum() <= 3


def test_weights_for_another_engine_have_the_adapters_in_them():
    adapted = CausalLM.load(ModelSpec(init=TINY, lora=LoraSpec(r=2)))
    with torch.no_grad():
        for name, p in adapted.model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    plain = CausalLM.load(ModelSpec(init=TINY))
    missing = plain.model.load_state_dict(dict(merged_weights(adapted.model)), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    ids = torch.tensor([[1, 3, 4, 5]])
    with torch.no_grad():
        assert torch.allclose(plain.model(ids).logits, adapted.model(ids).logits, atol=1e-5)


def test_what_vllm_says_bit_by_bit_is_put_together():
    def said(ids, reason=None):
        logprobs = [{i: SimpleNamespace(logprob=-i / 10), 99: SimpleNamespace(logprob=-9.0)} for i in ids]
        return SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs, finish_reason=reason)

    made = _Made(2, 6)
    made.take(1, said([5]))
    made.take(0, said([3, 4, 2], "stop"))
    made.take(1, said([6, 7]))
    assert made.ended.tolist() == [True, False]
    made.take(1, said([], "length"))
    found = made.generation("cpu", True)
    assert found.tokens.tolist() == [[3, 4, 2], [5, 6, 7]] and found.mask.all()
    assert torch.allclose(found.logp, -found.tokens / 10)
    assert found.truncated.tolist() == [False, True] and found.ended.tolist() == [True, True]


def test_vllm_must_drop_what_it_cached_before_it_samples_from_new_weights():
    policy, calls = CausalLM.load(ModelSpec(init=TINY, engine="vllm")), []
    policy.engine._llm = SimpleNamespace(
        collective_rpc=lambda method, kwargs: calls.append((method, [name for name, _ in kwargs["weights_iterator"]])),
        reset_prefix_cache=lambda reset_connector: not reset_connector,
    )
    with pytest.raises(PolicyError, match="made by the weights before"):
        policy.engine._up_to_date()
    ((method, names),) = calls
    assert method == "reload_weights" and names == [name for name, _ in policy.model.named_parameters()]


@pytest.mark.skipif(has_vllm(), reason="vLLM is here")
def test_without_vllm_one_error_says_what_to_do():
    policy = CausalLM.load(ModelSpec(init=TINY, engine="vllm"))
    assert isinstance(policy.engine, VLLMEngine) and not policy.exact
    with pytest.raises(PolicyError, match=r"entropies"):
        policy.engine.generate(MIXED, entropy=True)
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(PolicyError, match="pip install vllm"):
            policy.generate(MIXED)


@pytest.mark.parametrize("settings", [{"engine": "vllm", "sample_dtype": "bfloat16"}, {"vllm": {"dtype": "half"}}])
def test_settings_of_one_engine_are_not_taken_by_another(settings):
    with pytest.raises(ValueError, match=r"model\.(vllm|sample_dtype)"):
        ModelSpec(init=TINY, **settings)
