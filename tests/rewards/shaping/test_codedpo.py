from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.codedpo import ranking

from coterie.errors import RewardError
from coterie.rewards.shaping.mutual_verification import mutual_verification


def scored(passed: list[list[bool]], groups: list[int] | None = None, **settings: float) -> torch.Tensor:
    links = torch.tensor(passed, dtype=torch.float64)
    components = {f"test_{j}": links[:, j] for j in range(links.shape[1])} | {"other": torch.full((len(links),), 9.0)}
    index = torch.tensor(groups or [0] * len(passed))
    return mutual_verification(torch.zeros(len(passed), dtype=torch.float64), components, index, **settings)


@pytest.mark.oracle("codedpo")
def test_numbers_of_the_source() -> None:
    got = scored([[True, True, True], [True, False, False]], rounds=2)
    assert got.tolist() == pytest.approx([1, 0.471909], abs=1e-6)
    assert ranking([[True, True, True], [True, False, False]], 0.85, 2)[1] == pytest.approx([1, 0.708146, 0.708146])


@pytest.mark.oracle("codedpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(5):
        groups = inputs.table(kind, seed)["groups"]
        passed = np.random.default_rng(seed).random((len(groups), 4)) < 0.5
        got = scored(passed.tolist(), groups.tolist(), damping=0.7, rounds=5)
        for g in set(groups.tolist()):
            rows = np.nonzero(groups == g)[0]
            want, _ = ranking(passed[rows].tolist(), 0.7, 5)
            np.testing.assert_allclose(got[rows].numpy(), want, rtol=1e-9)


@pytest.mark.reduction("codedpo")
@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(2, 5))
def test_rollouts_that_pass_alike_are_worth_the_same(row: list[bool], size: int) -> None:
    assert scored([row] * size).tolist() == pytest.approx([1.0] * size)


@pytest.mark.reduction("codedpo")
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=5))
def test_one_round_counts_the_tests_passed(passed: list[list[bool]]) -> None:
    """With damping 1 the first round is the number of tests passed, over the largest."""
    counts = np.array([sum(row) for row in passed], dtype=float)
    got = scored(passed, rounds=1, damping=1.0)
    assert got.tolist() == pytest.approx((counts / max(counts.max(), 1)).tolist())


def test_tests_must_be_there() -> None:
    with pytest.raises(RewardError, match="begin with 'unit'"):
        mutual_verification(torch.zeros(2), {"test_1": torch.ones(2)}, torch.zeros(2, dtype=torch.long), tests="unit")
