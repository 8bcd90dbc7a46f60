"""Rewards behind a gate: P-GRPO's reasoning and G-RA's steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.gate import accumulated, p_grpo
from oracles.group_norm import group_norm as z

from coterie.credit import group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import gate


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def summed(components: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """As the loop adds them up, leaving out what was not given."""
    return torch.stack([weights[k] * v.nan_to_num(0.0) for k, v in components.items()]).sum(0)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


ONES = {"form": 1.0, "outcome": 1.0, "thought": 1.0, "steps": 1.0}


@pytest.mark.oracle("p-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_reasoning_counts_after_success(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        rng = np.random.default_rng(seed)
        right = n["correct"]
        form, thought = (rng.random(len(right)) < 0.5) * 1.0, rng.random(len(right))
        parts = {"form": torch.from_numpy(form), "outcome": torch.from_numpy(right * 1.0),
                 "thought": torch.from_numpy(thought)}  # fmt: skip
        want = p_grpo(form.tolist(), (right * 1.0).tolist(), thought.tolist())
        whole = summed(parts, ONES)
        near(gate(whole, parts, ONES, torch.from_numpy(right), gated=("thought",)), want)
        near(gate(whole, parts, ONES, gated=("thought",), by="outcome"), want)


@pytest.mark.oracle("p-grpo")
def test_numbers_of_p_grpo() -> None:
    parts = {"form": R(1, 1, 1, 0), "outcome": R(1, 1, 0, 0), "thought": R(0.9, 0.2, 0.95, 0.5)}
    got = gate(summed(parts, ONES), parts, ONES, torch.tensor([True, True, False, False]), gated=("thought",))
    near(got, [2.9, 2.2, 1, 0])
    groups = torch.zeros(4, dtype=torch.long)
    near(group_norm(got, groups, ddof=0, eps=0.0), [1.2363, 0.6069, -0.4721, -1.3712], 1e-4)
    near(group_norm(got, groups), z([2.9, 2.2, 1, 0], [0] * 4))


@pytest.mark.oracle("g-ra")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("delta", [0.4, -math.inf, math.inf])
def test_steps_are_paid_out_where_the_outcome_is_good(kind: str, delta: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        high, low = n["rewards"], n["step_rewards"]
        parts = {"outcome": torch.from_numpy(high), "steps": torch.from_numpy(low.sum(-1))}
        got = gate(summed(parts, ONES), parts, ONES, gated=("steps",), by="outcome", at=delta)
        near(got, accumulated(high.tolist(), low.tolist(), delta))


@pytest.mark.oracle("g-ra")
def test_numbers_of_g_ra() -> None:
    parts = {"outcome": R(2, 1, 0), "steps": R(0.3, 0.6, 1.0)}
    near(gate(summed(parts, ONES), parts, ONES, gated=("steps",), by="outcome"), [2.3, 1.6, 0])


def test_several_components_weights_and_what_was_not_given() -> None:
    parts = {"outcome": R(1, 0, math.nan, 0), "thought": R(1, 2, 3, math.nan), "steps": R(10, 20, 30, 40)}
    weights = {"outcome": 1.0, "thought": 0.5, "steps": -0.1}
    whole = summed(parts, weights)
    got = gate(whole, parts, weights, gated=("thought", "steps"), by="outcome")
    near(got, [0.5, 0, 0, 0])
    near(gate(whole, parts, weights, gated=("steps",), by="outcome"), [0.5, 1, 1.5, 0])


def test_names_and_verdicts_that_are_missing() -> None:
    parts = {"thought": R(1, 0)}
    with pytest.raises(RewardError, match="'steps', which no reward function gives"):
        gate(R(1, 0), parts, {"thought": 1.0}, torch.tensor([True, False]), gated=("steps",))
    with pytest.raises(RewardError, match="'outcome', which no reward function gives"):
        gate(R(1, 0), parts, {"thought": 1.0}, gated=("thought",), by="outcome")
    with pytest.raises(RewardError, match="the task has no verifier"):
        gate(R(1, 0), parts, {"thought": 1.0}, gated=("thought",))


def test_what_it_records() -> None:
    parts = {"thought": R(1, 0, 1, 1)}
    with collect(seen := Collector()):
        gate(R(1, 0, 1, 1), parts, {"thought": 1.0}, torch.tensor([True, False, False, False]), gated=("thought",))
    assert seen.means() == {"gate/open_share": 0.25}


@pytest.mark.reduction("p-grpo", "g-ra")
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.booleans()), min_size=1, max_size=8))
def test_an_open_gate_is_the_sum_and_a_shut_one_the_rest(rows: list[tuple[float, float, bool]]) -> None:
    a, b = R(*(r[0] for r in rows)), R(*(r[1] for r in rows))
    parts, weights, whole = {"a": a, "b": b}, {"a": 1.0, "b": 2.0}, a + 2 * b
    assert torch.equal(gate(whole, parts, weights, gated=("b",), by="a", at=-9.0), whole)
    near(gate(whole, parts, weights, gated=("b",), by="a", at=9.0), a, 1e-9)
    right = torch.tensor([r[2] for r in rows])
    assert torch.equal(gate(a, parts, {"a": 1.0, "b": 0.0}, right, gated=("b",)), a)


@pytest.mark.reduction("p-grpo")
@given(st.lists(st.booleans(), min_size=4, max_size=8), st.floats(0, 1))
def test_reasoning_that_is_always_the_same_leaves_grpo(right: list[bool], score: float) -> None:
    outcome, groups = R(*map(float, right)), torch.zeros(len(right), dtype=torch.long)
    parts = {"outcome": outcome, "thought": torch.full_like(outcome, score)}
    got = gate(summed(parts, ONES), parts, ONES, torch.tensor(right), gated=("thought",))
    near(group_norm(got, groups, eps=0.0) if outcome.std() > 0 else got - got,
         group_norm(outcome, groups, eps=0.0) if outcome.std() > 0 else got - got, 1e-9)  # fmt: skip
