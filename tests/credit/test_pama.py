from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.pama import pama as oracle
from oracles.pama import weights

from coterie.credit import group_norm, pareto_norm
from coterie.metrics import Collector, collect

FOUR = torch.zeros(4, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("pama")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed, signs in enumerate([{"exact": 1.0, "format": 0.5}, {"exact": 2.0, "format": -1.0, "extra": 1.0},
                                  {"exact": 0.0, "format": 1.0, "extra": 0.0}]):  # fmt: skip
        n = inputs.table(kind, seed)
        parts = {k: n["components"].get(k, n["rewards"] ** 2).astype(np.float32) for k in signs}
        if seed == 1:
            parts["format"][::3] = np.nan
        t = {k: torch.from_numpy(v).to(dtype) for k, v in parts.items()}
        for settings in ({}, {"negative": True}, {"negative": True, "ddof": 0, "eps": 0.1}):
            want = oracle(parts, signs, n["groups"].tolist(), **settings)
            near(pareto_norm(t, signs, torch.from_numpy(n["groups"]), **settings), want, tolerance)


@pytest.mark.oracle("pama")
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=3))
def test_the_closed_form_is_the_least_of_all_mixtures(v: list[int]) -> None:
    """Against every mixture on a grid: no other convex combination is nearer to 0."""
    c = weights(v)
    assert min(c) >= 0 and math.fsum(c) == pytest.approx(1)
    best = abs(math.fsum(a * b for a, b in zip(c, v, strict=True)))
    for cuts in itertools.combinations_with_replacement(range(13), len(v) - 1):
        mixture = np.diff([0, *cuts, 12]) / 12
        assert best <= abs(float(mixture @ np.array(v))) + 1e-12


@pytest.mark.oracle("pama")
def test_numbers_of_the_source() -> None:
    assert weights([0.3, -0.2, 0.1]) == pytest.approx([0.4, 0.6, 0.0])
    parts, ones = {"a": R(3, 2, 1, 0), "b": R(0, 2, 1, 0), "c": R(1, 1, 1, 1)}, {"a": 1.0, "b": 1.0, "c": 1.0}
    a, b = group_norm(parts["a"], FOUR), group_norm(parts["b"], FOUR)
    near(pareto_norm(parts, ones, FOUR), [0, float(min(a[1], b[1])), 0, 0])
    near(pareto_norm(parts, ones, FOUR, negative=True), [0, float(a[1]), 0, float(max(a[3], b[3]))], 1e-9)


def test_nothing_said_and_everything_equal_give_exactly_zero() -> None:
    nothing = R(math.nan, math.nan, math.nan, math.nan)
    for parts in ({"a": nothing}, {"a": R(0.1, 0.1, 0.1, 0.1)}, {"a": nothing, "b": R(0.3, 0.3, 0.3, 0.3)}):
        assert (pareto_norm(parts, dict.fromkeys(parts, 1.0), FOUR, negative=True) == 0).all()
    assert (pareto_norm({"a": R(1, 0, 1, 0)}, {"a": 0.0}, FOUR) == 0).all()


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        pareto_norm({"a": R(3, 2, 1, 0), "b": R(0, 2, 1, 0)}, {"a": 1.0, "b": 1.0}, FOUR)
    assert seen.means() == {"pama/conflict_share": 0.5}


@pytest.mark.reduction("pama")
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=8), st.floats(0.01, 10))
def test_one_reward_is_grpo_and_its_upper_half_without_negatives(rewards: list[float], weight: float) -> None:
    r, groups = R(*rewards), torch.zeros(len(rewards), dtype=torch.long)
    grpo = group_norm(r, groups)
    near(pareto_norm({"r": r}, {"r": weight}, groups, negative=True), grpo)
    near(pareto_norm({"r": r}, {"r": weight}, groups), grpo.clamp_min(0))


@pytest.mark.reduction("pama")
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=3, max_size=8))
def test_nobody_is_pushed_against_a_reward(pairs: list[tuple[float, float]]) -> None:
    a, b = (R(*column) for column in zip(*pairs, strict=True))
    groups = torch.zeros(len(pairs), dtype=torch.long)
    got = pareto_norm({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, groups, negative=True)
    for own in (group_norm(a, groups), group_norm(b, groups)):
        assert (got * own >= 0).all()
        if own.any():
            assert (got.abs() <= own.abs() + 1e-12).all()
