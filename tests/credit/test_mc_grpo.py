from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.mc_grpo import median_norm as median_norm_oracle
from oracles.mc_grpo import pivots

from coterie.credit import group_norm, median_norm
from coterie.metrics import Collector, collect
from coterie.selection import drop_pivot
from coterie.wiring import whitens

ONE_GROUP = torch.zeros(5, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("mc-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("scale", ["mad", "std", "none"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_median_norm_against_the_oracle(kind: str, scale: Any, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["rewards"] = n["rewards"].astype(np.float32)  # the same numbers in both precisions
        t = inputs.tensors(n, dtype)
        for settings in ({}, {"ddof": 0, "eps": 0.1}):
            want = median_norm_oracle(n["rewards"], n["groups"], scale, **settings)
            near(median_norm(t["rewards"].to(dtype), t["groups"], scale=scale, **settings), want, tolerance)


@pytest.mark.oracle("mc-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_first_median_of_each_group_is_dropped(kind: str) -> None:
    for seed in range(5):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        pivot = np.array(pivots(n["rewards"], n["groups"]))
        near(drop_pivot(t["rewards"], t["groups"], t["weights"]), np.where(pivot, 0.0, n["weights"]))
        wide = t["weights"].unsqueeze(-1) * torch.arange(1, 4)
        near(drop_pivot(t["rewards"], t["groups"], wide), np.where(pivot[:, None], 0.0, wide.numpy()))


@pytest.mark.oracle("mc-grpo")
def test_numbers_of_the_source() -> None:
    rewards = R(0.2, 0.9, 0.4, 0.5, 0.1)
    near(median_norm(rewards, ONE_GROUP), [-0.995025, 2.487562, 0, 0.497512, -1.492537], 1e-6)
    assert drop_pivot(rewards, ONE_GROUP, torch.ones(5)).tolist() == [1, 1, 0, 1, 1]
    near(median_norm(R(1, 1, 0, 1, 1), ONE_GROUP), [0, 0, -1000, 0, 0])
    assert drop_pivot(R(1, 1, 0, 1, 1), ONE_GROUP, torch.ones(5)).tolist() == [0, 1, 1, 1, 1]


def test_an_even_group_takes_its_lower_middle() -> None:
    near(median_norm(R(4, 1, 2, 3), torch.zeros(4, dtype=torch.long), scale="none"), [2, -1, 0, 1])


@pytest.mark.parametrize("scale", ["mad", "std", "none"])
@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e8])
def test_equal_rewards_give_exactly_zero(scale: Any, value: float) -> None:
    for n in (1, 2, 5):
        assert (
            median_norm(torch.full((n,), value), torch.zeros(n, dtype=torch.long), scale=scale, eps=1e-9) == 0
        ).all()


def test_a_chain_knows_that_it_divides_by_a_spread() -> None:
    for scale, divides in (("mad", True), ("std", True), ("none", False)):
        assert whitens(median_norm.piece.bind({"scale": scale})) == divides


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        rewards, groups = R(1, 0, 0, 1, 2, 3), torch.tensor([0, 0, 0, 1, 1, 1])
        median_norm(rewards, groups)
        drop_pivot(rewards, groups, torch.ones(6))
    assert seen.means() == {"credit/mad_zero_share": 0.5, "weights/pivot_share": pytest.approx(1 / 3)}


@pytest.mark.reduction("mc-grpo")
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=5), st.floats(-2, 2))
def test_rewards_symmetric_about_their_middle_give_dr_grpo(half: list[float], middle: float) -> None:
    """There median and mean agree; the pivot's advantage is 0 either way."""
    rewards = R(*(middle + h for h in half), middle, *(middle - h for h in half))
    groups = torch.zeros(len(rewards), dtype=torch.long)
    near(median_norm(rewards, groups, scale="none"), group_norm(rewards, groups, scale="none"), 1e-9)
    near(median_norm(rewards, groups, scale="std", eps=1e-4), group_norm(rewards, groups), 1e-6)


@pytest.mark.reduction("mc-grpo")
@given(st.lists(st.floats(0, 1), min_size=3, max_size=9), st.floats(1, 1e6))
def test_an_outlier_moves_no_other_sign(rewards: list[float], far: float) -> None:
    """However far the best is, what the others are told does not change (with the mean it does)."""
    groups = torch.zeros(len(rewards) + 1, dtype=torch.long)
    near_by, far_off = (median_norm(R(*rewards, x), groups, scale="none")[:-1] for x in (1.0, far))
    assert torch.equal(near_by, far_off)
