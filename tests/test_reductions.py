"""Group reductions against plain loops, on groups in any order, with ties and with any labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie import reductions

rows = st.lists(
    st.tuples(st.sampled_from([-1.5, -0.0, 0.0, 0.1, 0.3, 2.0]), st.integers(-2, 2)), min_size=1, max_size=16
)


def split(drawn: Sequence[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([value for value, _ in drawn], dtype=torch.float64)
    return x, torch.tensor([group for _, group in drawn])


@given(rows)
def test_medians_are_lower_medians(drawn: list[tuple[float, int]]) -> None:
    want = [statistics.median_low([v for v, h in drawn if h == g]) for _, g in drawn]
    assert reductions.group_median(*split(drawn)).tolist() == want


@given(rows)
def test_positions_are_those_of_a_stable_sort(drawn: list[tuple[float, int]]) -> None:
    for place, (i, (_, g)) in zip(reductions.group_position(*split(drawn)).tolist(), enumerate(drawn), strict=True):
        members = [j for j, (_, h) in enumerate(drawn) if h == g]
        assert sorted(members, key=lambda j: drawn[j][0])[place] == i


@given(rows)
def test_ranks_count_those_below_and_half_of_the_ties(drawn: list[tuple[float, int]]) -> None:
    want = []
    for value, group in drawn:
        peers = [v for v, h in drawn if h == group]
        want.append(sum(p < value for p in peers) + (sum(p == value for p in peers) - 1) / 2)
    assert reductions.group_rank(*split(drawn)).tolist() == want


@given(rows)
def test_ties_share_group_and_value(drawn: list[tuple[float, int]]) -> None:
    labels = reductions.group_ties(*split(drawn)).tolist()
    for i, a in enumerate(drawn):
        for j, b in enumerate(drawn):
            assert (labels[i] == labels[j]) == (a == b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    x, groups = torch.tensor([2.0, 1.0, 1.0, 5.0], dtype=dtype), torch.tensor([0, 0, 0, 9])
    assert reductions.group_median(x, groups).dtype == dtype
    assert reductions.group_rank(x, groups).dtype == dtype
    assert reductions.group_position(x, groups).tolist() == [2, 0, 1, 0]


NAN = float("nan")


def test_turns() -> None:
    turn = torch.tensor([[0, 0, -99, 1, 2], [0, -1, -1, -99, -99], [-99] * 5])
    mask = torch.tensor([[True, True, False, True, True], [True, True, True, False, False], [False] * 5])
    assert reductions.turn_count(turn, mask).tolist() == [3, 1, 0]
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, 0.0], [5.0, 6.0, 7.0]])
    assert reductions.at_turn(values, turn, mask).tolist() == [[1, 1, 0, 2, 3], [4, 0, 0, 0, 0], [0] * 5]
    x = torch.tensor([[1.0, 3.0, NAN, 5.0, 7.0], [2.0, 4.0, 8.0, NAN, float("inf")], [NAN] * 5])
    assert reductions.turn_mean(x, turn, mask).tolist() == [[2, 2, 0, 5, 7], [2, 6, 6, 0, 0], [0] * 5]
    assert reductions.turn_mean(x[2:], turn[2:], mask[2:]).tolist() == [[0] * 5]
    x = torch.ones(3, 5, requires_grad=True)
    (reductions.turn_mean(x, turn, mask) * torch.tensor([1.0, 3.0, 9.0, 1.0, 1.0])).sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == [2, 2, 0, 1, 1]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), min_size=5, max_size=5)), min_size=1, max_size=9)
)
def test_decisions_share_a_label_where_rollouts_agree_up_to_there(rows: list[tuple[int, list[int]]]) -> None:
    """Of each drawn row the first token says how many of the rest are decisions: holes, endings and empty rows too."""
    groups = torch.tensor([g - 1 for g, _ in rows])
    tokens = torch.tensor([t[:4] for _, t in rows])
    mask = torch.tensor(
        [[bool(t[4] or (i + place) % 3) and i % 4 != 3 for place in range(4)] for i, (_, t) in enumerate(rows)]
    )
    label = reductions.shared_prefixes(torch.where(mask, tokens, -99), mask, groups).tolist()
    seen: dict[int, tuple[int, ...]] = {}
    for i in range(len(rows)):
        path: tuple[int, ...] = (int(groups[i]),)
        for t in range(4):
            if not mask[i, t]:
                assert label[i][t] == -1
                continue
            path = (*path, int(tokens[i, t]))
            assert seen.setdefault(label[i][t], path) == path
    assert len(set(seen.values())) == len(seen)


def test_returns_to_go() -> None:
    turn = torch.tensor([[0, 1, 1, 2], [-1, 0, -1, -1], [-1, -1, -1, -1]])
    there = reductions.turn_exists(turn, turn >= 0, 4)
    assert there.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    x = torch.tensor([[1.0, 2.0, 4.0, torch.nan], [3.0, torch.nan, 1.0, 1.0], [1.0] * 4])
    want = [[3.0, 4.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0] * 4]
    assert reductions.returns_to_go(x, there, 0.5).tolist() == want


def test_unbroken_returns() -> None:
    there = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    x = torch.tensor([[1.0, 0.5, 2.0, torch.nan], [1.0, 1.0, torch.nan, 1.0], [1.0] * 4])
    want = [[1.0, 0.5, 2.0, 0.0], [1.5, 1.0, 0.0, 0.0], [0.0] * 4]
    assert reductions.unbroken_returns(x, there, 0.5, 0.9).tolist() == want
    assert reductions.unbroken_returns(x, there, 0.5, 0.1)[0].tolist() == [1.75, 1.5, 2.0, 0.0]


def test_the_last_decision_is_one_of_each_row_that_has_any() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    assert reductions.last_decision(mask).nonzero().tolist() == [[0, 3], [2, 0], [3, 4]]
