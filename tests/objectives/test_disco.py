from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import compare_groups, example, survives
from oracles import inputs
from oracles.disco import disco

from coterie.objectives.losses import discriminative

NAMES = ("logp", "logp_old", "rewards", "lengths", "groups", "weights", "mask", "budget")

READ = ("logp", "logp_old", "rewards", "groups")


def value(**settings: Any) -> Any:
    return lambda t: discriminative(*(t[c] for c in NAMES), **settings)


def made(logp: list[float], rewards: list[float]) -> dict[str, Any]:
    """Rollouts of one decision in one group, on policy."""
    t = example([[1.0]] * len(logp), [0] * len(logp), [1] * len(logp))
    t["logp"] = torch.tensor(logp, dtype=torch.float64).unsqueeze(-1)
    t |= {"logp_old": t["logp"].clone(), "rewards": torch.tensor(rewards, dtype=torch.float64)}
    return t | {"logp": t["logp"].requires_grad_()}


VARIANTS = [
    {"tau": 1.0, "beta": 3.0, "delta": 0.05, "above": 0.2},
    {"score": "ratio", "tau": 1.0, "kl": "k3", "beta": 0.5, "delta": 0.01, "above": 0.2},
    {"tau": None, "beta": 2.0, "delta": 0.0, "above": 0.0},
    {"score": "ratio", "tau": None, "kl": "k3", "beta": 0.0},
]


@pytest.mark.oracle("disco")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        if kind == "huge_ratios":  # beyond the limits of exp nothing but the sign of a gradient is of interest
            n["logp"] = np.clip(n["logp"], n["logp_old"] - 5, n["logp_old"] + 5)
        live = n["mask"] & (n["weights"] != 0)[:, None]
        compare_groups(value(**settings), lambda n, m=live: disco(*(n[c] for c in READ), m, **settings), n)


@pytest.mark.oracle("disco")
def test_numbers_of_the_source() -> None:
    t = made([-1.0, -2.0, -3.0], [1, 0, 0])
    loss = value(tau=1.0)(t)
    (gradient,) = torch.autograd.grad(loss[0], t["logp"])
    assert loss.tolist() == pytest.approx([-1.379885] * 3, abs=1e-6)
    np.testing.assert_allclose(gradient[:, 0], [-1, 0.731059, 0.268941], atol=1e-6)


def test_finite() -> None:
    for settings in VARIANTS:
        survives(value(**settings))


def test_groups_of_one_kind_have_the_constraint_alone() -> None:
    for reward in (0.0, 1.0):
        assert value()(made([-1.0, -2.0], [reward] * 2)).tolist() == [0, 0]


groups_of = st.lists(st.tuples(st.floats(-4, -0.05), st.booleans()), min_size=2, max_size=6)


@pytest.mark.reduction("disco")
@given(groups_of)
def test_a_high_temperature_averages_the_wrong_ones(rows: list[tuple[float, bool]]) -> None:
    t = made([x for x, _ in rows], [float(r) for _, r in rows])
    torch.testing.assert_close(value(tau=1e8)(t), value(tau=None)(t), rtol=1e-6, atol=1e-6)


@pytest.mark.reduction("disco")
@given(groups_of)
def test_without_a_temperature_it_is_grpo_without_the_weight_of_difficulty(rows: list[tuple[float, bool]]) -> None:
    """On policy, by the ratio: the gradient of reward minus mean is J's times p (1 - p)."""
    t = made([x for x, _ in rows], [float(r) for _, r in rows])
    (gradient,) = torch.autograd.grad(value(tau=None, score="ratio")(t)[0], t["logp"])
    p = float(t["rewards"].mean())
    grpo = -(t["rewards"] - p) / len(rows)
    np.testing.assert_allclose(gradient[:, 0] * p * (1 - p), grpo if 0 < p < 1 else 0 * grpo, atol=1e-12)


@given(st.floats(-5, -0.1), st.floats(-5, -0.1))
def test_the_likelier_wrong_one_is_pushed_down_more(a: float, b: float) -> None:
    t = made([-1.0, min(a, b), max(a, b)], [1, 0, 0])
    (gradient,) = torch.autograd.grad(value(tau=0.5)(t)[0], t["logp"])
    assert 0 <= gradient[1, 0] <= gradient[2, 0] and math.isclose(float(gradient.sum()), 0, abs_tol=1e-12)
