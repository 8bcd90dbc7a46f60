from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.kl import estimate
from oracles.soft_overlong import soft_overlong as oracle

from coterie.rewards.shaping import kl_reward, soft_overlong


def penalty(lengths: list[int], budget: int, **settings: float) -> list[float]:
    got = soft_overlong(torch.ones(len(lengths), dtype=torch.float64), torch.tensor(lengths), budget, **settings) - 1
    return got.tolist()


def test_numbers_of_the_sources() -> None:
    assert penalty([15, 16, 18, 20, 21], 20, cache=4) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert penalty([5, 8], 8, cache=4) == [-0.25, -1.0]
    # The paper's own: a cache of a fifth is the default.
    assert penalty([16384, 18432, 20480], 20480) == [0.0, -0.5, -1.0]
    assert penalty([18, 20], 99, max_length=20, cache=4) == [-0.5, -1.0]


@pytest.mark.oracle("dapo")
@given(st.lists(st.integers(0, 60), min_size=1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 3))
def test_against_the_oracle(lengths: list[int], budget: int, cache: int, factor: float) -> None:
    want = [oracle(n, budget, cache, factor) for n in lengths]
    np.testing.assert_allclose(penalty(lengths, budget, cache=cache, factor=factor), want, atol=1e-12)


@pytest.mark.reduction("dapo")
def test_factor_zero_is_identity() -> None:
    rewards = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(soft_overlong(rewards, torch.arange(5) * 9, 10, factor=0.0), rewards)


@pytest.mark.oracle("kl-reward", "reinforce++")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_reward_against_the_oracle(kind: str, estimator: str) -> None:
    n = inputs.table(kind)
    want = n["token_rewards"].copy()
    for i, j in zip(*np.nonzero(n["mask"]), strict=True):
        want[i, j] -= 0.3 * estimate(n["logp_old"][i, j] - n["logp_ref"][i, j], estimator)[0]
    t = inputs.tensors(n)
    got = kl_reward(t["token_rewards"], t["logp_old"], t["logp_ref"], t["mask"], coef=0.3, estimator=estimator)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


def test_kl_reward_default_is_k1_and_ignores_padding() -> None:
    mask = torch.tensor([[True, True, False]])
    old = torch.tensor([[-1.0, -2.0, float("nan")]], dtype=torch.float64)
    ref = torch.tensor([[-1.5, -1.0, float("nan")]], dtype=torch.float64)
    got = kl_reward(torch.zeros(1, 3, dtype=torch.float64), old, ref, mask, coef=1.0)
    assert got.tolist() == [[-0.5, 1.0, 0.0]]
    assert torch.equal(kl_reward(torch.ones_like(old), old, ref, mask, coef=0.0), torch.ones_like(old))
