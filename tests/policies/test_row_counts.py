"""Products through a rounder number of rows are the products, whatever stands behind the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.policies import row_counts
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.products import add_times, linear, times
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Prompt, Sampling

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch's own"])
def either(request, monkeypatch):
    """Both libraries that float32 products may go to, whatever this processor takes."""
    monkeypatch.setattr(row_counts, "by_onednn", lambda: request.param)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(0, 2**20))
@settings(max_examples=300)
def test_few_numbers_that_are_little_more_or_less(rows):
    up, down = row_counts.rounded(rows), row_counts.rounded(rows, up=False)
    assert down <= rows <= up and row_counts.rounded(up) == up
    assert up - rows < max(8, rows / 32) and rows - down < max(16, rows / 32)


def test_numbers_between_two_powers_of_two():
    for power in range(4, 14):
        assert len({row_counts.rounded(n) for n in range(2**power + 1, 2 ** (power + 1) + 1)}) <= 32


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 63, 100, 1001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(rows, dtype, either):
    x, weight = normal(rows, 24, dtype=dtype), normal(8, 24, dtype=dtype, seed=1)
    made = times(x, weight)
    want = x.double() @ weight.double().T
    assert made.shape == (rows, 8) and made.dtype == dtype
    torch.testing.assert_close(made.double(), want, rtol=DTYPES[dtype], atol=DTYPES[dtype] * 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_behind_does_not_matter(dtype):
    x, weight = normal(100, 16, dtype=dtype), normal(8, 16, dtype=dtype, seed=1)
    roomy = row_counts.empty(x, 100, 16)
    assert not roomy._is_view() and roomy.untyped_storage().nbytes() > roomy.nbytes
    roomy.copy_(x)
    behind = torch.as_strided(roomy, (row_counts.rounded(100), 16), (16, 1))[100:]
    assert len(behind)
    want = times(x, weight)
    for filling in (0.0, torch.nan, torch.inf):
        behind.fill_(filling)
        assert row_counts.widened(roomy).data_ptr() == roomy.data_ptr()
        assert torch.equal(times(roomy, weight), want)
    assert torch.isinf(behind).all()


def test_memory_of_others_is_read_only_within_bounds():
    whole = normal(100, 16)
    for part in (whole[:50], whole[30:], whole[90:], whole[:, :8], whole.T):
        wide = row_counts.widened(part)
        assert len(wide) == row_counts.rounded(len(part)) and torch.equal(wide[: len(part)], part)
    assert row_counts.widened(whole[:50]).data_ptr() == whole.data_ptr()
    assert row_counts.widened(whole[30:]).data_ptr() != whole[30:].data_ptr()


@pytest.mark.parametrize("rows", [0, 3, 16, 100, 259])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows(rows, dtype):
    a, b = normal(rows, 8, dtype=dtype), normal(rows, 24, dtype=dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    before = normal(8, 24, dtype=wide, seed=2)
    made = a.double().T @ b.double()
    for total, want in ((None, made), (before, made + before.double())):
        got = add_times(total, a, b)
        assert got.dtype == wide
        torch.testing.assert_close(got.double(), want, rtol=DTYPES[dtype], atol=DTYPES[dtype] * 20)


@pytest.mark.parametrize("rows", [3, 100, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_plus_something(rows, dtype, either):
    x, weight, plus = normal(rows, 24, dtype=dtype), normal(8, 24, dtype=dtype, seed=1), normal(rows, 8, dtype=dtype)
    want = x.double() @ weight.double().T + plus.double()
    got = times(x, weight, plus.clone())
    assert got.shape == plus.shape
    torch.testing.assert_close(got.double(), want, rtol=DTYPES[dtype], atol=DTYPES[dtype] * 20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype, either):
    x, weight = (y.requires_grad_() for y in (normal(101, 16, dtype=dtype), normal(8, 16, dtype=dtype, seed=1)))
    grad = normal(101, 8, dtype=dtype, seed=2)
    got = torch.autograd.grad(linear(x, weight), (x, weight), grad)
    wide = x.detach().double(), weight.detach().double()
    for mine, want in zip(got, (grad.double() @ wide[1], grad.double().T @ wide[0]), strict=True):
        size = float(want.abs().max())
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), want, rtol=DTYPES[dtype], atol=DTYPES[dtype] * size)


def test_batches_of_many_lengths_multiply_few_numbers_of_rows(monkeypatch):
    policy = CausalLM.load(ModelSpec(init=TinySpec(family="llama", layers=1, width=32, heads=2, context=64)))
    monkeypatch.setattr(row_counts, "by_onednn", lambda: True)
    seen, lengths, multiply = set(), set(), torch.ops.mkldnn._linear_pointwise

    def counted(x, *args):
        seen.add(len(x))
        return multiply(x, *args)

    def counted_sum(x, *args):
        seen.add(len(x))
        return multiply.binary(x, *args)

    counted.binary = counted_sum
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    for seed in range(12):
        prompts = [Prompt((1, *range(3, 3 + seed + i)), {}, i) for i in range(4)]
        made = policy.rollout(prompts, [[seed, 99, 7 * seed]] * 4, Sampling(max_tokens=20))
        lengths.add(int(made["mask"].sum()) + sum(len(p.tokens) for p in prompts))
        policy.score(made)["logp"].sum().backward()
    assert seen and len(lengths) > 8 and all(n < 16 or n % 8 == 0 for n in seen)


def test_lines_that_would_take_each_others_place_in_caches_do_not_touch(monkeypatch):
    like = torch.empty(0)
    for onednn, dtype, width, stride in (
        (False, torch.float32, 512, 528),
        (False, torch.float32, 24, 24),
        (False, torch.bfloat16, 512, 512),
        (True, torch.float32, 512, 512),
    ):
        monkeypatch.setattr(row_counts, "by_onednn", lambda onednn=onednn: onednn)
        made = row_counts.spaced(like.to(dtype), 5, width)
        assert made.shape == (5, width) and made.stride() == (stride, 1) and made.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_whose_lines_do_not_touch(dtype, either):
    x, weight = normal(100, 24, dtype=dtype), normal(256, 24, dtype=dtype, seed=1)
    made = times(x, weight, spaced=True)
    torch.testing.assert_close(made, times(x, weight))
    torch.testing.assert_close(add_times(None, made, x), add_times(None, made.contiguous(), x))


def test_gradients_of_layers_whose_lines_do_not_touch(monkeypatch):
    """A width that makes room between lines, in all that goes back through a layer."""
    policy = CausalLM.load(ModelSpec(init=TinySpec(family="qwen3", layers=2, width=256, heads=2, context=64)))
    prompts = [Prompt((1, *range(3, 9 + i)), {}, i) for i in range(3)]
    made = policy.rollout(prompts, [[0, 1, 2]] * 3, Sampling(max_tokens=20))
    found = []
    for onednn in (True, False):
        monkeypatch.setattr(row_counts, "by_onednn", lambda onednn=onednn: onednn)
        policy.model.zero_grad()
        policy.score(made)["logp"].sum().backward()
        found.append({name: p.grad.clone() for name, p in policy.model.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)
