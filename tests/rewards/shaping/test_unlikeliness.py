from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.unlikeliness import unlikeliness as oracle

from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import unlikeliness

FOUR = torch.zeros(4, dtype=torch.long)
ONE = torch.ones(4, 1, dtype=torch.bool)
LOGP = torch.tensor([[-1.0], [-3.0], [-2.0], [-0.5]], dtype=torch.float64)
NAMES = ("rewards", "groups", "logp_old", "mask")


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("unlikeliness")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("likelihood", ["mean", "sum"])
def test_against_the_oracle(kind: str, likelihood: Any) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        for beta in (0.25, 0.7):
            want = oracle(*(n[c] for c in NAMES), beta=beta, likelihood=likelihood)
            near(unlikeliness(*(t[c] for c in NAMES), beta=beta, likelihood=likelihood), want)


@pytest.mark.oracle("unlikeliness")
def test_numbers_of_the_source() -> None:
    shaped = unlikeliness(R(1, 1, 0, 0), FOUR, LOGP, ONE)
    near(shaped, [0.875, 1, 0, 0])
    near(group_norm(shaped, FOUR, eps=1e-6), [0.74724, 0.97716, -0.8622, -0.8622], 1e-5)
    near(
        group_norm(unlikeliness(R(1, 1, 1, 1), FOUR, LOGP, ONE), FOUR, eps=1e-6),
        [-0.387294, 1.161881, 0.387294, -1.161881],
        1e-5,
    )


def test_length_matters_to_the_sum_alone() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logp = torch.tensor([[-0.5, -0.5, -0.5], [-1.0, float("nan"), 0.0]], dtype=torch.float64)
    two = torch.zeros(2, dtype=torch.long)
    near(unlikeliness(R(1, 1), two, logp, mask, beta=0.5), [0.75, 1.0])
    near(unlikeliness(R(1, 1), two, logp, mask, beta=0.5, likelihood="sum"), [1.0, 0.75])


def test_equally_likely_rollouts_share_their_rank_and_penalties_stay() -> None:
    same = torch.tensor([[-1.0], [-1.0], [-2.0], [-2.0]], dtype=torch.float64)
    near(unlikeliness(R(1, 1, -1, 2), FOUR, same, ONE, beta=1.0), [1 - 2.5 / 4, 1 - 2.5 / 4, -1, 2 * (1 - 0.5 / 4)])


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        unlikeliness(R(1, 1, 0, 0), FOUR, LOGP, ONE)
    assert seen.means() == {"unlikeliness/rewarded_rank": (2 / 4 + 0) / 2}


@pytest.mark.reduction("unlikeliness")
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0, 1))
def test_beta_zero_is_identity_and_rewards_only_shrink(rewards: list[float], beta: float) -> None:
    plain = R(*rewards)
    assert torch.equal(unlikeliness(plain, FOUR, LOGP, ONE, beta=0.0), plain)
    shaped = unlikeliness(plain, FOUR, LOGP, ONE, beta=beta)
    assert (shaped <= plain).all() and ((shaped > 0) <= (plain > 0)).all()


@pytest.mark.reduction("unlikeliness")
@given(st.permutations(range(4)))
def test_among_rollouts_all_right_the_rarest_is_worth_most(order: list[int]) -> None:
    shaped = unlikeliness(R(1, 1, 1, 1), FOUR, LOGP[list(order)], ONE)
    assert shaped.argsort(descending=True).tolist() == LOGP[list(order), 0].argsort().tolist()
