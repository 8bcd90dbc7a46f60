"""Unified-GRPO (UAE): each side against its own, in turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import unified as oracle

from coterie.credit import group_norm, side_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.selection import take_turns

ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.floats(-3, 3, allow_subnormal=False)), min_size=1, max_size=14
)


def columns(rows: list[tuple[int, int, float]]) -> dict[str, np.ndarray]:
    group, episode, reward = zip(*rows, strict=True)
    return {"groups": np.array(group), "episode": np.array(episode), "rewards": np.array(reward, dtype=np.float64)}


def near(got: torch.Tensor, want: np.ndarray, tolerance: float = 1e-9) -> None:
    assert got.numpy() == pytest.approx(np.asarray(want), rel=tolerance, abs=tolerance)


@pytest.mark.oracle("uae", "unirl")
@given(ROWS, st.sampled_from([{}, {"ddof": 0, "eps": 1e-2}]))
def test_each_side_against_its_own_by_the_oracle(
    rows: list[tuple[int, int, float]], settings: dict[str, float]
) -> None:
    n = columns(rows)
    t = inputs.tensors(n)
    near(side_norm(t["rewards"], t["groups"], t["episode"], **settings), oracle.own_norm(n, **settings), 1e-6)


@pytest.mark.oracle("uae", "unirl")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_each_side_against_its_own_on_tables(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        near(side_norm(t["rewards"], t["groups"], t["episode"]), oracle.own_norm(n))


@pytest.mark.oracle("uae")
def test_two_descriptions_of_two_drawings_each() -> None:
    """Descriptions (group 0) meet each other, drawings (group 1) those of the same description."""
    groups, episode = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 0, 0, 1, 1])
    rewards = torch.tensor([0.75, 0.25, 1.0, 0.5, 0.25, 0.25], dtype=torch.float64)
    got = side_norm(rewards, groups, episode, ddof=0, eps=1e-12)
    assert got.tolist() == pytest.approx([1.0, -1.0, 1.0, -1.0, 0.0, 0.0])


@pytest.mark.reduction("uae", "unirl")
@given(ROWS)
def test_where_all_act_once_it_is_the_norm_of_the_group(rows: list[tuple[int, int, float]]) -> None:
    t = inputs.tensors(columns(rows))
    once = torch.arange(len(rows))
    want = group_norm(t["rewards"], t["groups"])
    near(side_norm(t["rewards"], t["groups"], once), want.numpy())
    everything = torch.zeros(len(rows), dtype=torch.long)
    near(side_norm(t["rewards"], t["groups"], everything), want.numpy())


SIDE = {"side": "format"}


@pytest.mark.oracle("uae")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_turns_against_the_oracle(kind: str) -> None:
    n = inputs.table(kind, 1)
    t = inputs.tensors(n)
    for every, together in ((1, 0), (3, 2), (2, 5), (0, 4)):
        for step in range(12):
            got = take_turns(t["weights"], t["components"], step, every=every, together=together, **SIDE)
            near(got, oracle.turns(n, "format", every, together, step))


@pytest.mark.oracle("uae")
def test_weights_of_decisions_are_taken_too_and_the_share_is_told() -> None:
    draws = {"draws": torch.tensor([1.0, 0.0, float("nan")])}
    weights = torch.tensor([[0.5, 0.0], [1.0, 2.0], [1.0, 1.0]])
    with collect(seen := Collector()):
        first = take_turns(weights, draws, 0, every=2)
        second = take_turns(weights, draws, 2, every=2)
    assert first.tolist() == [[0.0, 0.0], [1.0, 2.0], [1.0, 1.0]]
    assert second.tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert seen.means()["turns/learning_share"] == pytest.approx(0.5)


@pytest.mark.reduction("uae")
@given(ROWS, st.integers(0, 20))
def test_without_turns_all_learn(rows: list[tuple[int, int, float]], step: int) -> None:
    weights = torch.tensor([r[2] for r in rows])
    side = {"draws": torch.tensor([float(r[0] > 0) for r in rows])}
    assert torch.equal(take_turns(weights, side, step, every=0), weights)
    assert torch.equal(take_turns(weights, side, step, every=1, together=21), weights)


def test_over_a_round_each_side_has_learned_as_often() -> None:
    side = {"draws": torch.tensor([1.0, 0.0])}
    total = sum(take_turns(torch.ones(2), side, step, every=3) for step in range(12))
    assert torch.equal(torch.as_tensor(total), torch.tensor([6.0, 6.0]))


def test_a_side_that_no_reward_tells_is_an_error() -> None:
    with pytest.raises(RewardError, match="'draws', which no reward function gives"):
        take_turns(torch.ones(2), {"drawn": torch.ones(2)}, 0)
