"""Tournaments: the seeded knock-out of the paper and its other schemes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from games import Scripted, hold, noisy, scores, strict
from hypothesis import given
from hypothesis import strategies as st
from oracles import arena_rl as oracle

from coterie.recipe import resolve
from coterie.rewards.pairwise.single_elimination import bracket

SIZES = [2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17]
PLACES = ["round_robin", "anchor", "swiss", "single_elimination", "double_elimination"]


def near(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


def credit(rewards: Any) -> torch.Tensor:
    """The advantages of one group, by the baseline and settings of the method."""
    recipe = resolve(method="arena-rl", values={"task": "sort"})
    table = {
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "groups": torch.zeros(len(rewards), dtype=torch.long),
    }
    return recipe.single["credit.baseline"](table)


@pytest.mark.oracle("arena-rl")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_the_knock_out_against_the_oracle(size: int, both: bool, levels: int) -> None:
    for seed in range(4):
        judge = noisy(seed, levels)
        want = oracle.single_elimination(oracle.both_ways(judge) if both else judge, size)
        got = hold("single_elimination", judge, size, both_orders=both)
        near(got, want)
        near(credit(got), oracle.advantages(want), 1e-9)


@pytest.mark.oracle("arena-rl")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("both", [False, True])
def test_the_other_schemes_against_the_oracle(size: int, both: bool) -> None:
    for seed in range(4):
        judge = noisy(seed, 3)
        points = oracle.both_ways(judge) if both else judge
        near(hold("round_robin", judge, size, both_orders=both), oracle.round_robin(points, size))
        near(hold("anchor", judge, size, both_orders=both), oracle.anchor(points, size))
        draw = Scripted(seed)
        got = hold("swiss", judge, size, both_orders=both, draw=draw)
        assert len(draw.given) == min(math.ceil(math.log2(size)), size - 1)
        near(got, oracle.swiss(points, size, draw.given))
        again = np.random.default_rng(seed)

        def shuffle(players: list[int], rng: Any = again) -> list[int]:
            return [players[k] for k in rng.permutation(len(players))]

        got = hold("double_elimination", judge, size, both_orders=both, draw=seed)
        near(got, oracle.double_elimination(points, size, shuffle))


@pytest.mark.oracle("arena-rl")
def test_numbers_of_the_source() -> None:
    points = [[0, 6, 4, 9], [5, 0, 7, 8], [9, 3, 0, 6], [2, 1, 5, 0]]
    judge = lambda i, j: (float(points[i][j]), float(points[j][i]))  # noqa: E731
    knock_out = hold("single_elimination", judge, 4, both_orders=False)
    near(knock_out, [2 / 3, 1 / 3, 1, 0])
    near(credit(knock_out), [0.3873, -0.3873, 1.1619, -1.1619], 1e-4)
    assert hold("single_elimination", judge, 4) == knock_out, "a judge without a bias says the same both ways round"
    assert hold("round_robin", judge, 4) == [1, 1, 1, 0]


@pytest.mark.oracle("arena-rl")
def test_an_odd_one_goes_on_and_stands_first_in_the_next_round() -> None:
    """Five with seeds in order of row, by hand: the bracket is 0 3 4 1 2."""
    assert bracket(3) == [0, 1, 2] and bracket(6) == [0, 3, 4, 1, 2, 5] and bracket(8) == [0, 7, 3, 4, 1, 6, 2, 5]
    shown: list[tuple[int, int]] = []

    def judge(i: int, j: int) -> tuple[float, float]:
        shown.append((i, j))
        return 5.0 - i, 5.0 - j

    assert hold("single_elimination", judge, 5, both_orders=False) == [1, 0.75, 0.5, 0.25, 0]
    assert shown[:4] == [(1, 0), (2, 0), (3, 0), (4, 0)], "everybody meets the first"
    assert shown[4:] == [(0, 3), (4, 1), (2, 0), (1, 0)]


@pytest.mark.parametrize("scheme", ["single_elimination", "double_elimination"])
@pytest.mark.parametrize("size", SIZES)
def test_a_knock_out_takes_two_pairs_a_rollout_less_two(scheme: str, size: int) -> None:
    shown: list[tuple[int, int]] = []
    hold(scheme, lambda i, j: (shown.append((i, j)), (1.0, 0.0))[1], size, both_orders=False)
    assert len(shown) == 2 * size - 2


def test_where_all_are_equal_a_knock_out_still_has_places_and_round_robin_has_none() -> None:
    level = lambda i, j: (5.0, 5.0)  # noqa: E731
    assert hold("round_robin", level, 6) == [0.0] * 6 and hold("anchor", level, 6) == [0.0] * 6
    assert (credit(hold("round_robin", level, 6)) == 0).all()
    assert len(set(hold("swiss", level, 6))) == 1
    assert sorted(hold("single_elimination", level, 6)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize("scheme", PLACES)
def test_without_a_verdict(scheme: str) -> None:
    """Nothing at all: nobody has a reward. Now and then: a tie, or the middle of the scale."""
    assert np.isnan(hold(scheme, lambda i, j: None, 5)).all()
    judge = strict([1.0, 2.0, 3.0, 9.0])
    some = hold(scheme, lambda i, j: None if {i, j} == {0, 1} else judge(i, j), 4)
    assert some[3] == 1.0 and np.isfinite(some).all()
    assert len(hold(scheme, judge, 1)) == 1


def test_the_middle_of_the_scale() -> None:
    judge = lambda i, j: None if 2 in (i, j) else (8.0, 8.0)  # noqa: E731
    assert hold("anchor", judge, 3, both_orders=False) == [0.5, 1, 0]  # 0 got 8 and 5 in the mean
    assert hold("anchor", judge, 3, both_orders=False, neutral=9.0) == [0.5, 0, 1]


@pytest.mark.parametrize("scheme", PLACES)
@pytest.mark.reduction("arena-rl")
@given(scores(), st.integers(0, 100))
def test_the_champion_is_the_true_best(scheme: str, values: list[float], seed: int) -> None:
    got = hold(scheme, strict(values), len(values), draw=seed)
    assert np.argmax(got) == np.argmax(values) and got.count(max(got)) == 1
    assert max(got) == 1.0 and (min(got) == 0.0 or scheme == "swiss")


@pytest.mark.parametrize("scheme", PLACES)
@pytest.mark.reduction("arena-rl")
@given(scores(), st.integers(0, 100))
def test_only_the_order_of_scores_counts(scheme: str, values: list[float], seed: int) -> None:
    """Relabelled monotonically, here by ranks, the same judge gives the same places."""
    ranks = [float(sum(other < v for other in values)) for v in values]
    n = len(values)
    assert hold(scheme, strict(values), n, draw=seed) == hold(scheme, strict(ranks), n, draw=seed)


@pytest.mark.parametrize("scheme", ["round_robin", "anchor", "single_elimination"])
@pytest.mark.reduction("arena-rl")
@given(scores(), st.randoms(use_true_random=False))
def test_places_follow_their_rollouts(scheme: str, values: list[float], random: Any) -> None:
    """With one score a rollout, and no chance in the scheme, the order of rows does not matter."""
    n = len(values)
    order = random.sample(range(n), n)
    got = hold(scheme, strict(values), n)
    assert hold(scheme, strict([values[k] for k in order]), n) == [got[k] for k in order]


@pytest.mark.reduction("arena-rl")
@given(scores())
def test_round_robin_and_anchor_give_the_whole_order(values: list[float]) -> None:
    n = len(values)
    want = [sum(other < v for other in values) / (n - 1) for v in values]
    near(hold("round_robin", strict(values), n), want)
    near(hold("anchor", strict(values), n), want)


def test_swiss_plays_the_rounds_it_is_given() -> None:
    shown: list[tuple[int, int]] = []
    judge = lambda i, j: (shown.append((i, j)), (float(i), float(j)))[1]  # noqa: E731
    assert hold("swiss", judge, 4, rounds=9, both_orders=False) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len(shown) == 6 and len({frozenset(p) for p in shown}) == 6, "at most G-1 rounds, and nobody meets twice"
