from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.gcpo import gcpo as oracle

from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import group_contrast

FOUR, LENGTHS = torch.zeros(4, dtype=torch.long), torch.tensor([500, 900, 200, 1500])


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shaped(rewards: torch.Tensor, right: list[int], habit: torch.Tensor, **settings: Any) -> torch.Tensor:
    groups = torch.zeros(len(right), dtype=torch.long)
    lengths = torch.tensor([500, 900, 200, 1500] * 2)[: len(right)]
    return group_contrast(rewards, groups, torch.tensor(right).bool(), lengths, {"auxiliary": habit}, 1000, **settings)


@pytest.mark.oracle("gcpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"margin": 0.4, "weight": 2.0}, {"length_weight": 0.0, "max_length": 3}])
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(5):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        habit = (np.random.default_rng(seed).random(len(n["rewards"])) < 0.6) * 1.0
        if seed == 1:
            habit[::4] = np.nan
        if seed == 2:
            habit[n["groups"] == n["groups"][0]] = 1.0
        longest = settings.get("max_length", inputs.BUDGET)
        rest = {k: v for k, v in settings.items() if k != "max_length"}
        want = oracle(n["rewards"], n["groups"], n["correct"], n["lengths"], habit.tolist(), longest, **rest)
        parts = {"line": torch.from_numpy(habit)}
        columns = (t["rewards"], t["groups"], t["correct"], t["lengths"], parts, inputs.BUDGET)
        np.testing.assert_allclose(group_contrast(*columns, habit="line", **settings).numpy(), want, rtol=1e-12)


@pytest.mark.oracle("gcpo")
def test_numbers_of_the_source() -> None:
    got = shaped(R(1, 1, 0, 0), [1, 1, 0, 0], R(1, 1, 0, 0))
    np.testing.assert_allclose(got.numpy(), [1.75, 1.95, 0.1, 0.5], rtol=1e-12)


@pytest.mark.parametrize(
    "right,habit,mask",
    [
        ([1, 0, 0, 0], [1, 1, 0, 0], 1),
        ([0, 0, 1, 0], [1, 1, 0, 0], -1),
        ([1, 0, 1, 0], [1, 1, 0, 0], 0),
        ([1, 1, 0, 0], [1, 1, 1, 1], 0),
        ([1, 1, 0, 0], [0, 0, 0, 0], 0),
        ([1, 1, 0, 0], [1, 1, math.nan, math.nan], 1),
    ],
)
def test_who_is_rewarded(right: list[int], habit: list[float], mask: int) -> None:
    got = shaped(R(0, 0, 0, 0), right, R(*habit), weight=1.0, length_weight=0.0)
    assert got.tolist() == [mask if h == 1 else 0 for h in habit]


def test_a_component_that_does_not_exist() -> None:
    with pytest.raises(RewardError, match="'auxiliary', which no reward function gives"):
        group_contrast(R(1, 0), FOUR[:2], torch.tensor([True, False]), LENGTHS[:2], {"line": R(1, 0)}, 9)


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        shaped(R(1, 0, 0, 0), [0, 0, 0, 1], R(1, 0, 0, 0))
    assert seen.means() == {"gcpo/habit_share": 0.25, "gcpo/mask": -1.0}


@pytest.mark.reduction("gcpo")
@given(st.lists(st.tuples(st.floats(-2, 2), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_without_its_weights_it_is_grpo_and_the_mask_turns_with_right_and_wrong(
    rows: list[tuple[float, bool, bool]],
) -> None:
    rewards, right, habit = R(*(r[0] for r in rows)), [int(r[1]) for r in rows], R(*(float(r[2]) for r in rows))
    assert torch.equal(shaped(rewards, right, habit, weight=0.0, length_weight=0.0), rewards)
    zero = torch.zeros_like(rewards)
    bonus = shaped(zero, right, habit, length_weight=0.0)
    turned = shaped(zero, [1 - r for r in right], habit, length_weight=0.0)
    assert torch.equal(bonus, -turned)
