from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import compare, differentiate, surrogate, survives
from oracles import inputs
from oracles.dcpo_dac import bounds, dcpo

from coterie.metrics import Collector, collect
from coterie.objectives.trust_regions import probability_clip

COLUMNS = ("logp", "logp_old", "advantages", "mask")


def value(ratio: str = "token", **settings: Any) -> Any:
    return surrogate(ratio, "probability_clip", "logp_old", "mask", **settings)


@pytest.mark.oracle("dcpo-dac", "dcpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"eps_low": 0.05, "eps_high": 0.1, "cap": 3.0}], ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        compare(value(**settings), lambda n: dcpo(*(n[c] for c in COLUMNS), **settings), n)
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(value(**settings), lambda n: dcpo(*(n[c] for c in COLUMNS), **settings), n)


def found(p: float, **settings: float) -> tuple[float, float]:
    """The bounds in use: what is left of ratios far out."""
    old = torch.full((1, 2), math.log(p), dtype=torch.float64)
    ratio = torch.tensor([[0.0, 1e6]], dtype=torch.float64)
    a = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    out = probability_clip(ratio, a, old, torch.ones(1, 2, dtype=torch.bool), **settings)
    return -float(out[0, 0]), float(out[0, 1])


@pytest.mark.oracle("dcpo-dac", "dcpo")
def test_numbers_of_the_source() -> None:
    numbers = {0.9: (0.666667, 1.249074), 0.5: (0.5, 1.4), 0.1: (0.5, 2.246425), 0.01: (0.5, 5.815073)}
    for p, want in numbers.items():
        assert found(p) == pytest.approx(want, abs=1e-6)
        assert bounds(p) == pytest.approx(want, abs=1e-6)
    assert found(1.0)[1] == pytest.approx(1.228011, abs=1e-6)  # tighter than DAPO's 1.28
    assert found(1e-9) == (0.5, 10.0)


def test_a_bad_decision_far_above_is_cut_off() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    mask, ratio = torch.ones(1, 1, dtype=torch.bool), (50 * one).requires_grad_()
    with collect(seen := Collector(), mask):
        out = probability_clip(ratio, -one, -one, mask)
    out.sum().backward()
    assert float(out.detach()) == -10 and float(ratio.grad) == 0 and seen.means()["clip/fraction"] == 1


def test_a_ratio_a_rollout_has_the_bounds_of_its_mean_log_probability() -> None:
    old = torch.tensor([[-0.2, -3.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    out = probability_clip(*(torch.tensor([x], dtype=torch.float64) for x in (99.0, 1.0)), old, mask)
    assert float(out) == pytest.approx(bounds(math.exp(-1.6))[1])


def test_finite() -> None:
    for ratio in ("token", "sequence", "sequence_token"):
        survives(value(ratio))
    never = torch.full((1, 1), -torch.inf)
    assert probability_clip(torch.ones(1, 1), torch.ones(1), never, torch.ones(1, 1, dtype=torch.bool)).isfinite()


@pytest.mark.reduction("dcpo-dac", "dcpo")
@given(st.integers(0, 10_000), st.floats(0.05, 0.99), st.floats(0.01, 0.1), st.floats(0.01, 0.5))
def test_where_all_decisions_are_equally_likely_it_is_ppos_clip(seed: int, p: float, low: float, high: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    gap = t["logp"] - t["logp_old"]
    t["logp_old"] = torch.full_like(gap, math.log(p))
    t["logp"] = t["logp_old"] + gap
    lo, hi = bounds(p, low, high, 1e6)
    mine = differentiate(value(eps_low=low, eps_high=high, cap=1e6), t, "sequence")
    theirs = differentiate(surrogate("token", "ppo_clip", eps_low=1 - lo, eps_high=hi - 1), t, "sequence")
    assert mine[0] == pytest.approx(theirs[0], rel=1e-7, abs=1e-9)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-7, atol=1e-9)


@pytest.mark.reduction("dcpo-dac")
@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_the_less_likely_the_wider(p: float, q: float) -> None:
    rare, usual = sorted((p, q))
    assert found(rare)[0] <= found(usual)[0] + 1e-12 and found(rare)[1] >= found(usual)[1] - 1e-12
