from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.s_grpo import decaying, serial_decay

from coterie.credit import group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import serial_decay as piece


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("s-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("metric", ["auto", "correct", "rewards"])
def test_against_the_oracle(kind: str, metric: Any) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        won = n["rewards"] > 0 if metric == "rewards" else n["correct"]
        columns = [t[c] for c in ("rewards", "groups", "branch", "correct")]
        near(piece(*columns, metric=metric), serial_decay(won, n["groups"], n["branch"]))
        near(piece(*columns[:3], decay=0.9), serial_decay(n["rewards"] > 0, n["groups"], n["branch"], 0.9))


def serial(correct: list[bool], branch: list[int]) -> tuple[torch.Tensor, ...]:
    won = torch.tensor(correct)
    return won.double(), torch.zeros(len(correct), dtype=torch.long), torch.tensor(branch), won


@pytest.mark.oracle("s-grpo")
def test_numbers_of_the_source() -> None:
    correct = [False, True, True, False, True]
    assert decaying(correct) == [0, 1, 0.5, 0, 0.25]
    got = piece(*serial(correct, [2, 5, 6, 9, -1]))  # the full rollout comes last
    assert got.tolist() == [0, 1, 0.5, 0, 0.25]
    groups = torch.zeros(5, dtype=torch.long)
    near(group_norm(got, groups, scale="none"), [-0.35, 0.65, 0.15, -0.35, -0.1])


def test_the_order_is_that_of_the_exits() -> None:
    assert piece(*serial([True, True, True], [-1, 7, 3])).tolist() == [0.25, 0.5, 1]
    assert piece(*serial([True, True, True], [4, 4, -1])).tolist() == [1, 0.5, 0.25], "equal exits: in order of row"


@pytest.mark.reduction("s-grpo")
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 7), st.floats(0.1, 0.9))
def test_one_right_answer_or_no_decay_is_the_plain_reward(correct: list[bool], which: int, decay: float) -> None:
    branch = [-1, *range(1, len(correct))]
    assert piece(*serial(correct, branch), decay=1.0).tolist() == [float(c) for c in correct]
    lone = [i == which % len(correct) for i in range(len(correct))]
    assert piece(*serial(lone, branch), decay=decay).tolist() == [float(c) for c in lone]
    assert (piece(*serial([False] * len(correct), branch), decay=decay) == 0).all()


def test_a_verdict_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"metric=correct(.|\n)*metric=rewards"):
        piece(*serial([True, False], [-1, 1])[:3], metric="correct")


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        piece(*serial([True, True, False], [-1, 2, 5]))
    assert seen.means() == {"exits/right_share": 0.5}
