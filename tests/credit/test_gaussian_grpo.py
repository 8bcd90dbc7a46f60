from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.gaussian_grpo import rank_normal as oracle

from coterie.credit import group_norm, rank_normal


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


FOUR = torch.zeros(4, dtype=torch.long)


@pytest.mark.oracle("gaussian-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        n["rewards"] = n["rewards"].astype(np.float32)
        t = inputs.tensors(n)
        near(rank_normal(t["rewards"].to(dtype), t["groups"]), oracle(n["rewards"], n["groups"]), tolerance)


@pytest.mark.oracle("gaussian-grpo")
def test_numbers_of_the_source() -> None:
    near(rank_normal(R(0.1, 0.2, 0.3, 9), FOUR), [-1.150349, -0.318639, 0.318639, 1.150349], 1e-6)
    near(rank_normal(R(1, 0, 0, 0), FOUR), [1.150349, -0.38345, -0.38345, -0.38345], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 32])
def test_equal_rewards_give_exactly_zero(n: int, dtype: torch.dtype) -> None:
    assert (rank_normal(torch.full((n,), 0.1, dtype=dtype), torch.zeros(n, dtype=torch.long)) == 0).all()


rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([-2.0, 0.0, 0.25, 0.5, 1.0, 3.0]), st.integers(-2, 2)), min_size=1, max_size=14
).map(lambda rows: (R(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])))


@pytest.mark.reduction("gaussian-grpo")
@given(rewards_and_groups)
def test_only_the_order_of_rewards_counts(both: Any) -> None:
    rewards, groups = both
    for monotone in (rewards.exp(), 100 * rewards - 7, rewards**3):
        assert torch.equal(rank_normal(monotone, groups), rank_normal(rewards, groups))


@pytest.mark.reduction("gaussian-grpo")
@given(rewards_and_groups)
def test_a_group_sums_to_zero_and_an_order_turned_round_changes_signs(both: Any) -> None:
    rewards, groups = both
    a = rank_normal(rewards, groups)
    near(rank_normal(-rewards, groups), -a)
    for g in groups.unique():
        assert abs(float(a[groups == g].sum())) < 1e-12


@pytest.mark.reduction("gaussian-grpo")
@given(st.integers(2, 9), st.integers(1, 8))
def test_with_binary_rewards_it_is_grpo_on_another_scale(n: int, right: int) -> None:
    rewards = (torch.arange(n) < min(right, n - 1)).double()
    groups = torch.zeros(n, dtype=torch.long)
    a, b = rank_normal(rewards, groups), group_norm(rewards, groups)
    near(a / a.abs().max(), b / b.abs().max(), 1e-9)
