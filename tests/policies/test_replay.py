"""What generation kept is what the first update's forward would compute, and nothing else is ever taken for it."""

from __future__ import annotations

import pytest
import torch

from coterie.policies import gated_mlp, products, two_part
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.packing import pack_groups
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Sampling

CHARACTERS = "0123456789+=abcdef"
MUCH = 2**24


@pytest.fixture
def counted(monkeypatch):
    """Of each product with a weight, and of each layer's attention, how many rows."""
    rows = []
    attend = two_part._attend

    def attending(q, *args):
        rows.append(len(q))
        return attend(q, *args)

    def times(x, weight, plus=None, spaced=False):
        rows.append(len(x))
        out = torch.nn.functional.linear(x, weight)
        return out if plus is None else out + plus

    monkeypatch.setattr(products, "times", times)
    monkeypatch.setattr(gated_mlp, "times", times)
    monkeypatch.setattr(two_part, "_attend", attending)
    return rows


def sampled(policy, prompts, seeds, limit=MUCH, **sampling):
    with policy.kept.keeping(limit):
        return policy.rollout(prompts, seeds, Sampling(**{"max_tokens": 9, **sampling}))


def gradients(policy, rollouts):
    policy.model.zero_grad()
    logp = policy.score(rollouts)["logp"]
    (logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype).unsqueeze(-1)).sum().backward()
    return logp.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def same(got, want, tolerance):
    torch.testing.assert_close(got[0], want[0], atol=tolerance, rtol=0)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(got[1][name], gradient, atol=tolerance * size, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rows", [512, 4])
def test_the_first_forward_multiplies_nothing(make_policy, prompts, seeds, counted, family, dtype, rows):
    policy = make_policy(family)
    policy.model.to(dtype)
    policy.engine.max_rows = rows  # 4: rows come in late, beside others
    rollouts = sampled(policy, prompts, seeds)
    counted.clear()
    logp = policy.score(rollouts)["logp"]
    assert not counted
    torch.testing.assert_close(logp.detach(), rollouts["logp_old"].to(logp.dtype), atol=1e-5, rtol=0)
    got = gradients(policy, rollouts)
    policy.kept.forget()
    counted.clear()
    policy.score(rollouts)
    assert counted
    same(got, gradients(policy, rollouts), 1e-11 if dtype == torch.float64 else 2e-5)


def test_rows_in_any_order_and_number(make_policy, prompts, seeds, counted):
    """Micro-batches, filters and prompts drawn in several calls."""
    policy = make_policy("qwen3")
    first = sampled(policy, prompts, seeds)
    second = sampled(policy, prompts, [[s + 100 for s in some] for some in seeds], max_tokens=7)
    for rollouts, rows in ((first, [8, 2, 0, 3]), (second, [1, 2]), (first, [6, 5])):
        some = rollouts.rows(torch.tensor(rows))
        counted.clear()
        policy.score(some)
        assert not counted
        got = gradients(policy, some)
        kept, policy.kept.calls = policy.kept.calls, []
        same(got, gradients(policy, some), 2e-5)
        policy.kept.calls = kept


@pytest.mark.parametrize("max_rows", [512, 4])
def test_a_whole_call_is_read_where_it_is(make_policy, prompts, max_rows):
    """Rows of any lengths, some of them the same, fill the tables without a gap and in an order of their own."""
    policy = make_policy("qwen3")
    policy.engine.max_rows, policy.engine.stop_ids = max_rows, (2, 3, 5, 7, 11)
    rollouts = sampled(policy, prompts, [[11, 12, 12], [14, 14], [16, 17, 18, 19]])
    assert len(rollouts["lengths"].unique()) > 2
    call = policy.kept.calls[0]
    packed = pack_groups([p.tokens for p in rollouts.prompts], *(rollouts[n] for n in ("groups", "tokens", "mask")))
    place = (rollouts["groups"], rollouts["tokens"], rollouts["mask"], packed.at, packed.ids.shape[1])
    lines = call.locate([p.tokens for p in rollouts.prompts], *place)
    assert lines is not None and lines.sort().values.tolist() == list(range(call.filled))
    got = gradients(policy, rollouts)
    policy.kept.forget()
    same(got, gradients(policy, rollouts), 2e-5)


def test_half_precision_keeps_its_log_sums_in_float32(make_policy, prompts, seeds):
    policy = make_policy("qwen3")
    policy.model.to(torch.bfloat16)
    rollouts = sampled(policy, prompts, seeds)
    call = policy.kept.calls[0]
    assert {t.dtype for t in call.tables} == {torch.bfloat16} and {t.dtype for t in call.sums} == {torch.float32}
    got = gradients(policy, rollouts)
    policy.kept.forget()
    want = gradients(policy, rollouts)
    torch.testing.assert_close(got[0], want[0], atol=0.1, rtol=0)
    for name, gradient in want[1].items():
        assert float((got[1][name] - gradient).norm()) < 0.1 * float(gradient.norm()) + 1e-3, name


def another_token(tokens, mask):
    tokens[0, 0] = (tokens[0, 0] + 1) % 20


def shorter(tokens, mask):
    mask[torch.arange(len(mask)), mask.sum(-1) - 1] = False


def partly_decided(tokens, mask):
    mask[:, 0] = False


@pytest.mark.parametrize("change", [another_token, shorter, partly_decided])
def test_what_was_changed_is_computed(make_policy, prompts, seeds, counted, change):
    policy = make_policy("llama")
    rollouts = sampled(policy, prompts, seeds)
    tokens, mask = rollouts["tokens"].clone(), rollouts["mask"].clone()
    change(tokens, mask)
    rollouts = rollouts.with_columns(tokens=tokens, mask=mask)
    counted.clear()
    policy.score(rollouts)
    assert counted
    got = gradients(policy, rollouts)
    policy.kept.forget()
    same(got, gradients(policy, rollouts), 0.0)


def test_other_weights_and_other_rollouts_are_computed(make_policy, prompts, seeds, counted):
    policy = make_policy("llama")
    rollouts = sampled(policy, prompts, seeds)
    elsewhere = policy.rollout(prompts, [[s + 7 for s in some] for some in seeds], Sampling(max_tokens=9))
    counted.clear()
    policy.score(elsewhere)
    assert counted
    with torch.no_grad():
        policy.model.get_decoder().layers[0].input_layernorm.weight.add_(0.01)  # no product's weight, but before one
    counted.clear()
    got = gradients(policy, rollouts)
    assert counted and not policy.kept.calls
    same(got, gradients(policy, rollouts), 0.0)


def test_no_more_is_kept_than_was_allowed(make_policy, prompts, seeds):
    policy = make_policy("llama")
    sampled(policy, prompts, seeds)
    size = policy.kept.calls[0].bytes
    policy.kept.forget()
    sampled(policy, prompts, seeds, size - 1)
    assert not policy.kept.calls
    for _ in range(2):
        sampled(policy, prompts, seeds, 2 * size - 1)
    assert len(policy.kept.calls) == 1  # the second call found no room
    sampled(policy, prompts, seeds, 0)
    assert len(policy.kept.calls) == 1


def test_memory_is_used_again_and_holds_no_other_call_s_rows(make_policy, prompts, seeds):
    policy = make_policy("llama")
    old = sampled(policy, prompts, seeds)
    table = policy.kept.calls[0].tables[0]
    policy.kept.forget()
    new = sampled(policy, prompts[:2], [[91, 92], [93]], max_tokens=5)
    assert policy.kept.calls[0].tables[0] is table
    for rollouts in (old, new):
        got = gradients(policy, rollouts)
        kept, policy.kept.calls = policy.kept.calls, []
        same(got, gradients(policy, rollouts), 2e-5)
        policy.kept.calls = kept


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "adapted"])
def test_adapters_and_models_of_other_kinds_keep_nothing(make_policy, prompts, seeds, family):
    if family == "adapted":
        spec = ModelSpec(init=TinySpec(vocabulary=CHARACTERS), lora=LoraSpec(r=2))
        policy = CausalLM.load(spec)
    else:
        policy = make_policy(family)
    sampled(policy, prompts, seeds)
    assert not policy.kept.calls
