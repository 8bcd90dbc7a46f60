from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.paco_grpo import log_tamed as oracle
from oracles.paco_grpo import variations

from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.reductions import combine
from coterie.rewards.shaping import log_tamed

ONES = {"a": 1.0, "b": 1.0}


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("paco-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("above", ["mean", "median", 0.5, 1e9])
def test_against_the_oracle(kind: str, above: Any) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        parts = dict(n["components"]) | {"far": 40 * n["rewards"] ** 2, "note": n["rewards"] * 100}
        if seed > 1:
            parts["far"] = np.where(np.random.default_rng(seed).random(len(parts["far"])) < 0.4, np.nan, parts["far"])
        weights = {"exact": 1.0, "format": 0.5, "far": -0.1, "note": 0.0}
        t = {k: torch.from_numpy(v) for k, v in parts.items()}
        near(log_tamed(combine(t, weights), t, weights, above=above), oracle(parts, weights, above), 1e-9)


@pytest.mark.oracle("paco-grpo")
def test_numbers_of_the_source() -> None:
    parts = {"a": R(0.2, 0.4, 0.6, 0.8), "b": R(1, 9, 0, 4)}
    assert [round(h, 3) for h in variations({k: v.tolist() for k, v in parts.items()}).values()] == [0.447, 1.0]
    got = log_tamed(combine(parts, ONES), parts, ONES)
    near(got, [0.8931, 2.7026, 0.6, 2.4094], 1e-4)
    advantages = group_norm(got, torch.tensor([0, 0, 1, 1]), scale="batch_std", ddof=0, eps=1e-6)
    near(advantages, [-0.9871, 0.9871, -0.9871, 0.9871], 1e-4)


def test_negative_rewards_are_tamed_symmetrically_and_earlier_shaping_is_kept() -> None:
    parts = {"a": R(1, 1.1), "b": R(-3, 5)}
    near(log_tamed(R(10, 20), parts, ONES), [10 + 3 - np.log(4), 20 - 5 + np.log(6)])


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        log_tamed(R(0, 0), {"a": R(1, 1.1), "b": R(-3, 5), "note": R(0, 9)}, ONES | {"note": 0.0})
    assert seen.means() == {"paco/tamed_share": 0.5}


@pytest.mark.reduction("paco-grpo")
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=6))
def test_a_limit_out_of_reach_leaves_the_weighted_sum(rows: list[tuple[float, float]]) -> None:
    a, b = (R(*column) for column in zip(*rows, strict=True))
    whole = a + 2 * b
    assert torch.equal(log_tamed(whole, {"a": a, "b": b}, {"a": 1.0, "b": 2.0}, above=1e12), whole)
    assert torch.equal(log_tamed(a, {"a": a}, {"a": 1.0}), a), "a single reward is not above its own mean"
    assert torch.equal(log_tamed(a, {"a": a, "b": b}, {"a": 1.0, "b": 0.0}), a), "nor is it beside an annotation"


@pytest.mark.reduction("paco-grpo")
@given(st.lists(st.floats(0.1, 50), min_size=2, max_size=6, unique=True))
def test_taming_keeps_the_order_and_shortens_the_distance(values: list[float]) -> None:
    a = R(*sorted(values))
    got = log_tamed(a, {"a": a}, {"a": 1.0}, above=-1.0)
    assert (got.diff() >= 0).all() and (got.diff() <= a.diff() + 1e-12).all()
