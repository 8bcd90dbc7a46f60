"""GRPO-lambda and L-GRPO: length counts only where the prompt is answered well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.length_rewards import all_correct_length as all_correct_length_oracle
from oracles.length_rewards import grpo_lambda as grpo_lambda_oracle

from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import all_correct_length, grpo_lambda

NAMES = ("rewards", "groups", "correct", "lengths")
FOUR, TWO = torch.zeros(4, dtype=torch.long), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
ALL_RIGHT = torch.ones(4, dtype=torch.bool)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


def tables(kind: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    n = inputs.table(kind, seed)
    if seed:  # some groups all right, some all wrong
        n["correct"] |= n["groups"] == n["groups"][0]
        n["correct"] &= n["groups"] != n["groups"][-1]
    n["lengths"] = n["lengths"] * 1
    return n, inputs.tensors(n)


@pytest.mark.oracle("grpo-lambda")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_grpo_lambda_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n, t = tables(kind, seed)
        for settings in ({}, {"share": 0.5, "alpha": 0.7}, {"share": 1.0}):
            want = grpo_lambda_oracle(*(n[c] for c in NAMES), **settings)
            near(grpo_lambda(*(t[c] for c in NAMES), **settings), want)


@pytest.mark.oracle("l-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_all_correct_length_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n, t = tables(kind, seed)
        columns, want = [t[c] for c in NAMES], [n[c] for c in NAMES]
        near(all_correct_length(*columns, inputs.BUDGET), all_correct_length_oracle(*want, inputs.BUDGET))
        near(all_correct_length(*columns, inputs.BUDGET, max_length=3), all_correct_length_oracle(*want, 3))


@pytest.mark.oracle("grpo-lambda")
def test_numbers_of_grpo_lambda() -> None:
    rewards, correct = R(1, 1, 1, 1, 1, 0, 0, 0), R(1, 1, 1, 1, 1, 0, 0, 0) > 0
    lengths = torch.tensor([10, 20, 30, 40, 7, 8, 9, 10])
    shaped = grpo_lambda(rewards, TWO, correct, lengths)
    near(shaped[:4], [0.958552, 0.921995, 0.878005, 0.841448], 1e-6)
    assert shaped[4:].tolist() == [1, 0, 0, 0]
    near(group_norm(shaped, TWO)[:4], [1.144277, 0.429853, -0.429853, -1.144277], 1e-6)


@pytest.mark.oracle("l-grpo")
def test_numbers_of_l_grpo() -> None:
    shaped = all_correct_length(R(1, 1, 1, 1), FOUR, ALL_RIGHT, torch.tensor([16, 32, 48, 64]), 64)
    near(shaped, [0.75, 0.5, 0.25, 0])
    near(group_norm(shaped, FOUR), [1.161535, 0.387178, -0.387178, -1.161535], 1e-6)


def test_equal_lengths_give_no_advantage() -> None:
    same = torch.full((4,), 5)
    near(grpo_lambda(R(1, 1, 1, 1), FOUR, ALL_RIGHT, same), [0.9] * 4)
    for shaped in (
        grpo_lambda(R(1, 1, 1, 1), FOUR, ALL_RIGHT, same),
        all_correct_length(R(1, 1, 1, 1), FOUR, ALL_RIGHT, same, 9),
    ):
        assert (group_norm(shaped, FOUR) == 0).all()


def test_of_equal_groups_the_first_drawn_is_asked_for_short_answers() -> None:
    lengths = torch.tensor([1, 2, 3, 4] * 2)
    shaped = grpo_lambda(torch.ones(8), TWO, torch.ones(8, dtype=torch.bool), lengths)
    assert (shaped[:4] < 1).all() and (shaped[4:] == 1).all()


def test_what_they_record() -> None:
    correct = torch.tensor([True] * 5 + [False] * 3)
    with collect(seen := Collector()):
        grpo_lambda(correct.double(), TWO, correct, torch.arange(8), share=1.0)
        all_correct_length(correct.double(), TWO, correct, torch.arange(8), 9)
    assert seen.means() == {"grpo_lambda/shortened_share": 5 / 8, "l_grpo/all_correct_share": 0.5}


verdicts = st.lists(st.booleans(), min_size=8, max_size=8)


@pytest.mark.reduction("grpo-lambda")
@given(verdicts, st.lists(st.integers(0, 50), min_size=8, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_share_or_alpha_zero_is_identity_and_wrong_ones_never_change(
    right: list[bool], lengths: list[int], share: float, alpha: float
) -> None:
    correct, long = torch.tensor(right), torch.tensor(lengths)
    rewards = correct.double()
    assert torch.equal(grpo_lambda(rewards, TWO, correct, long, share=0.0, alpha=alpha), rewards)
    assert torch.equal(grpo_lambda(rewards, TWO, correct, long, share=share, alpha=0.0), rewards)
    shaped = grpo_lambda(rewards, TWO, correct, long, share=share, alpha=alpha)
    assert torch.equal(shaped[~correct], rewards[~correct])
    assert (shaped >= rewards * (1 - alpha)).all() and (shaped <= rewards).all()


@pytest.mark.reduction("l-grpo")
@given(verdicts, st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_a_group_with_one_failure_is_grpo(right: list[bool], lengths: list[int]) -> None:
    correct = torch.tensor(right)
    rewards = correct.double()
    shaped = all_correct_length(rewards, TWO, correct, torch.tensor(lengths), 50)
    for g in (0, 1):
        members = TWO == g
        if not correct[members].all():
            assert torch.equal(shaped[members], rewards[members])
        else:
            near(shaped[members], 1 - R(*lengths)[members] / 50)
