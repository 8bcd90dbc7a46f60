from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, compare_groups, example, survives
from oracles import inputs
from oracles.trpa import trpa as oracle

from coterie.metrics import Collector, collect
from coterie.objectives.losses import trpa

NAMES = ("logp", "logp_ref", "logp_old", "rewards", "groups", "weights", "mask")


def value(**settings: Any) -> Any:
    return lambda t: trpa(*(t[c] for c in NAMES), **settings)


def made(h: list[float], rewards: list[float]) -> dict[str, Any]:
    """Rollouts of one decision in one group, on policy, with these log-ratios to the reference."""
    t = example([[1.0]] * len(h), [0] * len(h), [1] * len(h))
    t["rewards"] = torch.tensor(rewards, dtype=torch.float64)
    t["logp_ref"] = t["logp"] - torch.tensor(h, dtype=torch.float64).unsqueeze(-1)
    return t | {"logp": t["logp"].requires_grad_()}


@pytest.mark.oracle("trpa")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"beta": 2.0, "anisotropy": 1.5, "above": 0.2, "coef": 0.3}], ids=str)
def test_value_and_gradient_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        if seed == 2:
            n["rewards"] = np.round(n["rewards"])  # few levels
        live = n["mask"] & (n["weights"] != 0)[:, None]
        compare_groups(value(**settings), lambda n, m=live: oracle(*(n[c] for c in NAMES[:5]), m, **settings), n)


@pytest.mark.oracle("trpa")
def test_numbers_of_the_source() -> None:
    """h of .2 and .1, the first right and the second wrong."""
    t = made([0.2, 0.1], [3.0, -0.5])
    loss = value()(t)
    (gradient,) = torch.autograd.grad(loss[0], t["logp"])
    assert loss.tolist() == pytest.approx([0.680725] * 2, abs=1e-6)
    np.testing.assert_allclose(gradient[:, 0], [-0.123438, 0.123438], atol=1e-6)
    with collect(seen := Collector(), t["mask"]):
        value()(t)
    assert seen.means() == {"trpa/pair_share": 1.0, "trpa/right_order": 1.0, "trpa/kl_old": 0.0}


def test_only_the_right_are_preferred_harder() -> None:
    t = made([0.0, 0.0, 0.0], [3.0, -0.5, -1.0])  # right, wrong, unreadable
    (gradient,) = torch.autograd.grad(value()(t)[0], t["logp"])
    np.testing.assert_allclose(gradient[:, 0], [-0.05 * 5 / 3, 0.05 * 1.5 / 3, 0.05 * 3.5 / 3], atol=1e-12)


def test_groups_of_one_level_have_the_kl_alone() -> None:
    t = made([0.5, -0.5], [1.0, 1.0])
    assert value(coef=7.0)(t).tolist() == [0, 0]
    t["logp_old"] = t["logp_old"] + 0.3
    assert value(coef=7.0)(t).tolist() == pytest.approx([7 * (math.exp(0.3) - 1.3)] * 2)


def test_smooth_and_finite() -> None:
    check_gradient(value(beta=1.0, coef=0.1), inputs.table("random", 5))
    survives(value())


@pytest.mark.reduction("trpa")
@given(st.lists(st.tuples(st.floats(-3, 0), st.floats(-3, 0)), min_size=2, max_size=2), st.floats(0.01, 2))
def test_two_rollouts_without_the_rest_are_dpo_on_mean_log_probs(rows: list[tuple[float, float]], beta: float) -> None:
    t = made([now - ref for now, ref in rows], [1.0, 0.0])
    (good, good_ref), (bad, bad_ref) = rows
    want = -math.log(1 / (1 + math.exp(-beta * ((good - good_ref) - (bad - bad_ref)))))
    assert value(beta=beta, anisotropy=1.0, coef=0.0)(t).tolist() == pytest.approx([want] * 2, abs=1e-9)


@pytest.mark.reduction("trpa")
@given(st.integers(0, 10_000))
def test_only_the_order_of_rewards_counts(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    other = t | {"rewards": t["rewards"] ** 3 - 5}
    assert torch.equal(value(anisotropy=1.0)(t), value(anisotropy=1.0)(other))
