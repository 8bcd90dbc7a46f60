"""LightningRL's filter, and its log-likelihood term."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.lightning_rl import kept
from oracles.lightning_rl import positive_nll as nll_oracle

from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import token
from coterie.objectives.terms import positive_nll
from coterie.selection import speed_signal

FOUR = torch.zeros(4, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.oracle("lightning-rl")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("spread", [0.01, 1.0, 0.0])
def test_the_filter_against_the_oracle(kind: str, spread: float) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        speed = n["components"]["format"].copy()
        if seed > 1:
            speed[np.random.default_rng(seed).random(len(speed)) < 0.5] = np.nan
        if seed == 3:
            speed[n["groups"] == n["groups"][0]] = 2.0
        want = kept(n["groups"].tolist(), n["correct"].tolist(), speed.tolist(), spread)
        parts = {"fast": torch.from_numpy(speed)}
        groups, correct = torch.from_numpy(n["groups"]), torch.from_numpy(n["correct"])
        assert speed_signal(groups, correct, parts, speed="fast", spread=spread).tolist() == want


def test_what_the_filter_keeps_and_records() -> None:
    groups, right = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([1, 0, 0, 0, 1, 1, 1, 1]).bool()
    speed = R(1, 2, 1, 2, 3, 3.009, math.nan, math.nan)
    with collect(seen := Collector()):
        assert speed_signal(groups, right, {"speed": speed}).tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert seen.means() == {"speed_signal/flat_share": 0.5}


def test_the_component_must_exist() -> None:
    with pytest.raises(RewardError, match="'speed', which no reward function gives"):
        speed_signal(FOUR, torch.ones(4).bool(), {"sped": R(1, 2, 3, 4)})


@pytest.mark.oracle("lightning-rl")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_term_and_its_gradient_against_the_oracle(kind: str) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        wide = {"correct": n["correct"], "advantages": n["advantages"] > 0.2}
        for on, rows in wide.items():
            good = np.broadcast_to(rows[:, None], n["mask"].shape)
            value, slope = nll_oracle(n["logp"], n["mask"], good, 0.3)
            logp = inputs.garbage("logp", t["logp"], t["mask"]).requires_grad_()
            settings: dict[str, Any] = {"on": on, "above": 0.2, "coef": 0.3}
            got = positive_nll(logp, t["advantages"], t["mask"], t["correct"], **settings)
            np.testing.assert_allclose(got.detach().numpy(), value, rtol=1e-12)
            (gradient,) = torch.autograd.grad(got.sum(), logp)
            np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-12)


@pytest.mark.oracle("lightning-rl")
def test_numbers_of_the_source() -> None:
    logp, mask = R(-1, -2).unsqueeze(0), torch.ones(1, 2).bool()
    value = positive_nll(logp, R(0), mask, torch.tensor([True]), coef=0.1)
    coefficients = token(torch.ones(1, dtype=torch.float64), mask, torch.zeros(1, dtype=torch.long))
    assert float((value * coefficients).sum()) == pytest.approx(0.15)


def test_it_needs_a_verdict_or_advantages() -> None:
    logp, mask = R(-1, -2).unsqueeze(-1), torch.ones(2, 1).bool()
    with pytest.raises(RewardError, match="the task has no verifier"):
        positive_nll(logp, R(1, -1), mask)
    assert positive_nll(logp, R(1, -1), mask, on="advantages", coef=1.0).tolist() == [[1.0], [0.0]]
    assert positive_nll(logp, R(1, 2), mask, on="advantages", above=1.0, coef=1.0).tolist() == [[0.0], [2.0]]


@pytest.mark.reduction("lightning-rl")
@given(st.lists(st.tuples(st.floats(-5, -0.1), st.booleans()), min_size=1, max_size=6), st.floats(0, 2))
def test_it_is_linear_in_its_weight_and_silent_without_it_or_without_success(
    rows: list[tuple[float, bool]], coef: float
) -> None:
    logp = R(*(x for x, _ in rows)).unsqueeze(-1)
    right, mask = torch.tensor([r for _, r in rows]), torch.ones(len(rows), 1).bool()
    a = torch.zeros(len(rows), dtype=torch.float64)
    torch.testing.assert_close(
        positive_nll(logp, a, mask, right, coef=coef), coef * positive_nll(logp, a, mask, right, coef=1.0)
    )
    assert (positive_nll(logp, a, mask, right, coef=0.0) == 0).all()
    assert (positive_nll(logp, a, mask, torch.zeros_like(right)) == 0).all()


def test_what_the_term_records() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    with collect(seen := Collector(), mask):
        positive_nll(R(-1, -3, -5, -7).view(2, 2), R(1, 0), mask, torch.tensor([True, False]))
    assert seen.means() == {"nll/good": 2.0, "nll/good_share": pytest.approx(2 / 3)}
