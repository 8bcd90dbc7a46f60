from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, compare, differentiate, example, surrogate, survives
from oracles import inputs
from oracles.sapo_soft import sapo

from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.objectives.trust_regions import soft_gate

COLUMNS = ("logp", "logp_old", "advantages", "mask")


@pytest.mark.oracle("sapo-soft")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"tau_pos": 0.3, "tau_neg": 4.0}], ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    value = surrogate("token", "soft_gate", **settings)
    for seed in range(3):
        n = inputs.table(kind, seed)
        compare(value, lambda n: sapo(*(n[c] for c in COLUMNS), **settings), n)
        compare(value, lambda n: sapo(*(n[c] for c in COLUMNS), **settings), n, torch.float32, 1e-4)
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(value, lambda n: sapo(*(n[c] for c in COLUMNS), **settings), n)


@pytest.mark.oracle("sapo-soft")
def test_numbers_of_the_source() -> None:
    loss, gradient, _ = differentiate(
        surrogate("token", "soft_gate"), example([[1.5], [0.5]], [1, -1], [1, 1]), "sequence"
    )
    assert loss == pytest.approx(-0.536949, abs=1e-6)
    np.testing.assert_allclose(gradient[:, 0], [-0.705011, 0.233535], atol=1e-6)


def test_smooth_and_finite() -> None:
    check_gradient(surrogate("token", "soft_gate"), inputs.table("random", 5))
    for ratio in ("token", "sequence", "sequence_token"):
        survives(surrogate(ratio, "soft_gate"))


@pytest.mark.reduction("sapo-soft")
@given(st.integers(0, 10_000), st.floats(0.1, 20), st.floats(0.1, 20))
def test_on_policy_its_gradient_is_grpos_whatever_the_gate(seed: int, tau_pos: float, tau_neg: float) -> None:
    t: dict[str, Any] = inputs.tensors(inputs.table("random", seed))
    t["logp"] = t["logp_old"]
    _, soft, _ = differentiate(surrogate("token", "soft_gate", tau_pos=tau_pos, tau_neg=tau_neg), t, "sequence")
    _, hard, _ = differentiate(surrogate("token", "ppo_clip"), t, "sequence")
    np.testing.assert_allclose(soft, hard, rtol=1e-10, atol=1e-14)


@pytest.mark.reduction("sapo-soft")
@given(st.integers(0, 10_000))
def test_a_wide_gate_clips_nothing(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    _, soft, _ = differentiate(surrogate("token", "soft_gate", tau_pos=1e-4, tau_neg=1e-4), t, "token")
    _, free, _ = differentiate(surrogate("token", "unclipped"), t, "token")
    np.testing.assert_allclose(soft, free, rtol=1e-4, atol=1e-9)


@given(st.floats(0.05, 12), st.floats(0.05, 12), st.floats(0.1, 5))
def test_the_farther_from_1_the_smaller_the_weight(a: float, b: float, tau: float) -> None:
    near, far = sorted((a, b), key=lambda r: abs(r - 1))
    r = torch.tensor([near, far], dtype=torch.float64, requires_grad=True)
    (weight,) = torch.autograd.grad(soft_gate(r, torch.ones(2, dtype=torch.float64), tau_pos=tau, tau_neg=tau).sum(), r)
    assert weight[1] <= weight[0] + 1e-12 and weight[0] <= 1


def test_a_gate_must_have_a_width() -> None:
    with pytest.raises(RecipeError, match="tau_neg must be above 0"):
        soft_gate(torch.ones(1), torch.ones(1), tau_neg=0.0)


def test_what_it_records() -> None:
    with collect(seen := Collector(), torch.ones(2, 1, dtype=torch.bool)):
        soft_gate(torch.tensor([[1.0], [9.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert seen.means() == {"gate/mean": pytest.approx(0.50067, abs=1e-5), "gate/closed_share": 0.5}
