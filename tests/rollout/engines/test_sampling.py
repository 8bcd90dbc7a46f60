from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.rollout.engines.sampling import draw, log_probs_of, measure, truncate, uniform
from coterie.rollouts import Sampling

SEEDS = torch.arange(4000)


def reference_uniform(seed: int, position: int) -> float:
    """splitmix64, in Python integers."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    return (mix((mix((seed + gamma) % 2**64) + (position + 1) * gamma) % 2**64) >> 11) * 2.0**-53


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))
def test_uniform_is_splitmix64(seed, position):
    assert uniform(torch.tensor([seed]), position).item() == reference_uniform(seed, position)


def test_uniform_is_uniform_over_seeds_and_over_positions():
    for sample in (uniform(SEEDS, 3), torch.cat([uniform(torch.tensor([9]), t) for t in range(4000)])):
        assert 0.0 <= float(sample.min()) and float(sample.max()) < 1.0
        counts = torch.histc(sample, bins=20, min=0.0, max=1.0)
        chi_square = float(((counts - 200) ** 2 / 200).sum())
        assert 4 < chi_square < 43.8  # 19 degrees of freedom: 0.999 quantile; and not suspiciously even


def test_uniform_is_independent_of_neighbouring_seeds_and_positions():
    here = uniform(SEEDS, 3)
    for other in (uniform(SEEDS, 4), uniform(SEEDS + 1, 3), uniform(SEEDS + 1, 2), uniform(SEEDS * 2, 3)):
        correlation = torch.corrcoef(torch.stack([here, other]))[0, 1]
        assert abs(float(correlation)) < 3.3 / math.sqrt(len(SEEDS))


def test_uniform_takes_a_position_a_row():
    assert torch.equal(uniform(SEEDS[:3], torch.tensor([5, 5, 7]))[:2], uniform(SEEDS[:2], 5))


def support(logits, sampling):
    return set((truncate(logits[None], sampling)[0] > -math.inf).nonzero().flatten().tolist())


def test_truncation_by_hand():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()[[3, 0, 4, 1, 2]]  # probabilities .1 .5 .05 .2 .15
    assert support(logits, Sampling(top_k=2)) == {1, 3}
    assert support(logits, Sampling(top_p=0.6)) == {1, 3}
    assert support(logits, Sampling(top_p=0.71)) == {1, 3, 4}
    assert support(logits, Sampling(top_p=1e-9)) == {1}
    assert support(logits, Sampling(min_p=0.25)) == {1, 3, 4}
    assert support(logits, Sampling(temperature=0.5, min_p=0.25)) == {1}
    assert support(logits, Sampling(top_k=3, top_p=0.8)) == {
        1,
        3,
    }  # .5/.85 + .2/.85 = .82: top-p acts on what top-k left
    assert support(logits, Sampling(top_k=99)) == {0, 1, 2, 3, 4}
    assert support(torch.zeros(4), Sampling(top_k=2)) == {0, 1, 2, 3}  # ties stay


def test_kept_tokens_stay_and_the_rest_renormalises():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    sampling = Sampling(top_k=1)
    assert log_probs_of(logits, torch.tensor([0]), sampling).item() == 0.0
    kept = log_probs_of(logits, torch.tensor([3]), sampling).item()
    assert kept == pytest.approx(-math.log1p(math.exp(4.0)), abs=1e-6)
    assert truncate(logits, sampling, torch.tensor([3])).tolist() == [[3.0, -math.inf, -math.inf, -1.0]]


def test_greedy_is_argmax_with_the_log_prob_at_temperature_one():
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    tokens, logp, entropy = draw(logits, Sampling(temperature=0.0, top_k=1), torch.tensor([0.9]), entropy=True)
    assert tokens.tolist() == [1]
    assert logp.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item())
    assert entropy.item() == pytest.approx(torch.distributions.Categorical(logits=logits[0]).entropy().item())


@settings(deadline=None)
@given(
    st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=12),
    st.sampled_from([0.0, 5e-324, 2.0**-53, 0.5, 1 - 2.0**-53]),
    st.integers(0, 4),
)
def test_a_token_of_probability_zero_is_never_drawn(values, u, top_k):
    logits = torch.tensor([[-math.inf, *values, -math.inf]])
    tokens, logp, _ = draw(logits, Sampling(top_k=top_k), torch.tensor([u], dtype=torch.float64))
    assert 0 < tokens.item() <= len(values) and logp.isfinite().all()
    assert logp.double().exp().item() > 0


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(4000, 1)
    tokens, logp, _ = draw(logits, Sampling(), uniform(SEEDS, 0))
    expected = torch.tensor([400.0, 800.0, 1200.0, 1600.0])
    assert float(((tokens.bincount(minlength=4) - expected) ** 2 / expected).sum()) < 16.3  # 3 dof, 0.999
    assert torch.allclose(logp.exp(), torch.tensor([0.1, 0.2, 0.3, 0.4])[tokens])


def test_chunks_of_a_large_batch_change_nothing(monkeypatch):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    whole = draw(logits, Sampling(top_p=0.8), uniform(SEEDS[:50], 0), entropy=True)
    monkeypatch.setattr("coterie.rollout.engines.sampling._DRAW_ELEMENTS", 30)
    parts = draw(logits, Sampling(top_p=0.8), uniform(SEEDS[:50], 0), entropy=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_entropy_of_a_truncated_distribution_is_finite_with_finite_gradient():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    tokens = logits.argmax(-1)
    out = measure(logits, tokens, Sampling(top_k=3), ("entropy",))
    want = torch.distributions.Categorical(logits=logits.detach().topk(3).values).entropy()
    assert out.keys() == {"entropy"} and torch.allclose(out["entropy"], want)
    out["entropy"].sum().backward()
    assert logits.grad.isfinite().all()
