"""Demonstrations among the rollouts, weighted by how likely they are (LUFFY)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, compare, differentiate, surrogate, survives
from oracles import inputs
from oracles.luffy import luffy

from coterie.api import start
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.objectives.trust_regions import policy_shaping
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def value(ratio: str = "token", **settings: Any) -> Any:
    return surrogate(ratio, "policy_shaping", "logp", "mask", "anchor", **settings)


@pytest.mark.oracle("luffy")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"gamma": 0.5, "eps_low": 0.05, "eps_high": 0.1}], ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        compare(value(**settings), lambda n: luffy(n, **settings), n)
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(value(**settings), lambda n: luffy(n, **settings), n)


@pytest.mark.oracle("luffy")
def test_numbers() -> None:
    """A demonstration with p = .1 and .9 beside a rollout whose ratio 1.5 is clipped; A = .5 and -.5, gamma .1."""
    logp = torch.tensor([[0.1, 0.9], [0.3, 0.3]], dtype=torch.float64).log().requires_grad_()
    ratio = torch.tensor([[7.0, 0.0], [1.5, 1.0]], dtype=torch.float64)
    a, mask = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool)
    with collect(seen := Collector(), mask):
        out = policy_shaping(ratio, a, logp, mask, torch.tensor([True, False]))
    out.sum().backward()
    np.testing.assert_allclose(out.detach(), [[0.25, 0.45], [0.6, 0.5]])
    np.testing.assert_allclose(logp.grad, [[0.125, 0.045], [0, 0]], atol=1e-12)
    assert seen.means() == pytest.approx({"clip/fraction": 0.5, "luffy/probability": 0.5, "luffy/weight": 0.7})


@given(st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_the_slope_is_greatest_where_the_probability_is_gamma(p: float, gamma: float) -> None:
    def slope(p: float) -> float:
        logp = torch.tensor([[math.log(p)]], dtype=torch.float64, requires_grad=True)
        one = torch.ones(1, 1, dtype=torch.float64)
        out = policy_shaping(one, one, logp, one > 0, torch.tensor([True]), gamma=gamma)
        return float(torch.autograd.grad(out.sum(), logp)[0])

    assert 0 < slope(p) <= slope(gamma) + 1e-12 and slope(gamma) == pytest.approx(0.25)


@pytest.mark.reduction("luffy")
@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.01, 3))
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token"])
def test_without_demonstrations_it_is_ppos_clip(ratio: str, seed: int, low: float, high: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["anchor"] = torch.zeros_like(t["anchor"])
    mine = differentiate(value(ratio, eps_low=low, eps_high=high), t, "sequence")
    theirs = differentiate(surrogate(ratio, "ppo_clip", eps_low=low, eps_high=high), t, "sequence")
    assert mine[0] == pytest.approx(theirs[0], rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("luffy")
@given(st.integers(0, 10_000))
def test_with_a_large_gamma_a_demonstration_is_weighted_by_its_probability(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["anchor"], t["logp"] = torch.ones_like(t["anchor"]), t["logp"].clamp_max(-1e-3)
    want = -t["logp"].exp() * t["advantages"].unsqueeze(-1)
    torch.testing.assert_close((1e8 * value(gamma=1e8)(t))[t["mask"]], want[t["mask"]])


def test_gradcheck_and_extremes() -> None:
    n = inputs.table("random", 1)
    n["logp"] = n["logp_old"] + 0.05 * np.sin(7 * n["logp_old"])  # away from the corners of the clip
    check_gradient(value(), n)
    for ratio in ("token", "sequence", "sequence_token"):
        survives(value(ratio))


def test_a_gamma_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="gamma is a probability above 0"):
        value(gamma=0.0)(inputs.tensors(inputs.table()))


def test_the_policy_takes_over_what_it_is_shown(tmp_path: Path) -> None:
    """Groups that never succeed learn from the demonstration alone, whose probability rises."""
    longer = ["steps=12", "optimizer.lr=0.02", "checkpoint.every=99"]
    rows = start(resolve(method="luffy", overrides=[*TINY, *longer]), tmp_path / "run", quiet=True).metrics
    seen = [row["luffy/probability"] for row in rows if "luffy/probability" in row]
    assert min(seen[-3:]) > 1.4 * seen[0]
