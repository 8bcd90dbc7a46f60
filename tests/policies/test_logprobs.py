from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from coterie.policies.logprobs import score_hidden
from coterie.rollouts import Sampling

N, H, V = 37, 8, 19
SPECS = [Sampling(), Sampling(temperature=0.7, top_k=6), Sampling(temperature=1.4, top_p=0.7, min_p=0.01)]


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("sampling", SPECS)
@pytest.mark.parametrize("chunk", [1, 5, 36, 37])
def test_chunks_change_neither_values_nor_gradients(sampling, chunk):
    results = []
    for size in (N, chunk):
        hidden, weight, tokens = problem()
        out = score_hidden(hidden, lambda h, w=weight: h @ w.T, tokens, sampling, chunk=size)
        (out["logp"].sin() + out["entropy"].cos()).sum().backward()
        results.append((out["logp"], out["entropy"], hidden.grad, weight.grad))
    for whole, parts in zip(*results, strict=True):
        assert whole.dtype == torch.float64 and whole.isfinite().all()
        assert torch.allclose(whole, parts, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sampling", SPECS)
def test_gradients_are_those_of_finite_differences(sampling):
    hidden, weight, tokens = problem()
    hidden, weight = hidden[:4].detach().requires_grad_(), weight.detach()

    def score(h):
        out = score_hidden(h, lambda x: x @ weight.T, tokens[:4], sampling, chunk=2)
        return out["logp"], out["entropy"]

    assert torch.autograd.gradcheck(score, (hidden,))


def test_only_what_is_wanted_and_float32_from_bfloat16():
    hidden, weight, tokens = problem(torch.bfloat16)
    out = score_hidden(hidden, lambda h: h @ weight.T, tokens, Sampling(), want=("logp",))
    assert set(out) == {"logp"} and out["logp"].dtype == torch.float32


def test_no_rows_is_legal_and_differentiable():
    hidden, weight, tokens = problem(torch.float32)
    out = score_hidden(hidden[:0], lambda h: h @ weight.T, tokens[:0], Sampling())
    assert out["logp"].shape == out["entropy"].shape == (0,)
    (out["logp"].sum() + out["entropy"].sum()).backward()


class Largest(TorchDispatchMode):
    """The most elements of any tensor an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("sampling", SPECS)
def test_no_tensor_is_ever_larger_than_a_chunk_of_logits(sampling):
    hidden, weight, tokens = problem(torch.float32)
    with Largest() as largest:
        out = score_hidden(hidden, lambda h: h @ weight.T, tokens, sampling, chunk=16)
        (out["logp"] + out["entropy"]).sum().backward()
    assert largest.elements == 16 * V < N * V
