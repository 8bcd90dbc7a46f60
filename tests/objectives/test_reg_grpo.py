from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, differentiate, example, survives
from oracles import inputs
from oracles.reg_grpo import reg_grpo

from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.objectives.losses import regression

COLUMNS = ("logp", "logp_old", "advantages", "groups", "weights", "mask")


def value(**settings: Any) -> Any:
    return lambda t: regression(*(t[c] for c in COLUMNS), **settings)


@pytest.mark.oracle("reg-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"eps": 0.3}, {"scale": "none"}], ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        live = n["mask"] & (n["weights"] != 0)[:, None]
        want, by_rho = reg_grpo(*(n[c] for c in COLUMNS[:4]), live, **settings)
        t = inputs.tensors(n)
        t |= {name: inputs.garbage(name, t[name], t["mask"]) for name in ("logp", "logp_old")}
        t["logp"].requires_grad_()
        got = value(**settings)(t)
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-9)
        pull = np.random.default_rng(seed).standard_normal(len(want))
        (gradient,) = torch.autograd.grad((got * torch.from_numpy(pull)).sum(), t["logp"])
        slope = (pull @ by_rho)[:, None] * live
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-7, atol=1e-9 * max(1.0, np.abs(slope).max()))


@pytest.mark.oracle("reg-grpo")
def test_numbers_of_the_source() -> None:
    a = group_norm(torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.zeros(3, dtype=torch.long))
    t = example(np.exp([[0.2], [-0.3], [-0.1]]).tolist(), a.tolist(), [1, 1, 1])
    loss, gradient, _ = differentiate(value(), t, "sequence")
    assert loss == pytest.approx(0.109720, abs=2e-4)
    np.testing.assert_allclose(gradient[:, 0], [-0.482614, -0.724138, 1.206751], atol=2e-3)
    with collect(seen := Collector(), t["mask"]):
        value()(t)
    assert seen.means()["regression/error"] == pytest.approx(loss)
    assert seen.means()["regression/std"] == pytest.approx(np.std([0.2, -0.3, -0.1], ddof=1))


def test_before_the_first_step_the_gradient_is_large_and_finite() -> None:
    t = example([[1.0]] * 3, [1.0, -0.5, -0.5], [1, 1, 1])
    _, gradient, _ = differentiate(value(), t, "sequence")
    np.testing.assert_allclose(gradient[:, 0], np.array([-2.0, 1.0, 1.0]) / 3 / 1e-4)
    _, plain, _ = differentiate(value(scale="none"), t, "sequence")
    np.testing.assert_allclose(plain[:, 0], np.array([-2.0, 1.0, 1.0]) / 3)


def test_equal_rewards_give_a_constant() -> None:
    t = example([[1.5], [0.5], [0.9], [1.0]], [0, 0, 0, 0], [1] * 4)
    loss, gradient, _ = differentiate(value(eps=1e-12), t, "sequence")
    assert loss == pytest.approx(1 - 1 / 4) and np.abs(gradient).max() < 1e-9


def test_groups_of_two_can_only_be_told_their_order() -> None:
    t = example([[1.5], [0.5]], [0.7, -0.7], [1, 1])
    _, gradient, _ = differentiate(value(eps=1e-12), t, "sequence")
    assert np.abs(gradient).max() < 1e-9


def test_of_advantages_a_decision_it_takes_the_mean() -> None:
    t = example([[1.5, 1.0], [0.5, 1.0]], [[2.0, 1.0], [-1.0, 9.0]], [2, 1])
    one = t | {"advantages": torch.tensor([1.5, -1.0], dtype=torch.float64)}
    assert torch.equal(value()(t), value()(one))


def test_smooth_and_finite() -> None:
    for settings in ({}, {"scale": "none"}):
        check_gradient(value(**settings), inputs.table("random", 5))
        survives(value(**settings))


@pytest.mark.reduction("reg-grpo")
@given(st.integers(0, 10_000))
def test_without_the_std_it_regresses_differences_of_log_ratios_on_those_of_advantages(seed: int) -> None:
    """Of a pair with advantages of mean 0: half the squared difference of differences, as REBEL."""
    n = np.random.default_rng(seed).standard_normal(3)
    t = example(np.exp([[n[0]], [n[1]]]).tolist(), [n[2], -n[2]], [1, 1])
    loss, _, _ = differentiate(value(scale="none"), t, "sequence")
    assert loss == pytest.approx((2 * n[2] - (n[0] - n[1])) ** 2 / 4, abs=1e-12)


@pytest.mark.reduction("reg-grpo")
@given(st.integers(0, 10_000), st.floats(0.5, 20), st.floats(-3, 3))
def test_neither_shift_nor_scale_of_the_log_ratios_is_seen(seed: int, scale: float, shift: float) -> None:
    r = np.random.default_rng(seed).standard_normal((4, 1))
    a = [1.0, -0.2, -0.3, -0.5]
    one, other = (example(np.exp(x).tolist(), a, [1] * 4) for x in (r, scale * r + shift))
    assert differentiate(value(eps=1e-12), one, "sequence")[0] == pytest.approx(
        differentiate(value(eps=1e-12), other, "sequence")[0], abs=1e-7
    )
