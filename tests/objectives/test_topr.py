from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, compare, differentiate, example, survives
from oracles import inputs
from oracles.topr import topr as oracle

from coterie.credit import baseline_shift, raw_reward
from coterie.metrics import Collector, collect
from coterie.objectives.losses import topr

COLUMNS = ("logp", "logp_old", "advantages", "mask")


def value(level: Any = "sequence") -> Any:
    return lambda t: topr(*(t[c] for c in COLUMNS), level=level)


@pytest.mark.oracle("topr")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_value_and_gradient_against_the_oracle(kind: str, level: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        compare(value(level), lambda n: oracle(*(n[c] for c in COLUMNS), level), n)
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(value(level), lambda n: oracle(*(n[c] for c in COLUMNS), level), n)


@pytest.mark.oracle("topr")
def test_numbers_of_the_source() -> None:
    t = example([[1.5], [0.5]], [1, -1], [1, 1], old=math.log(0.4))
    loss, gradient, _ = differentiate(value(), t, "sequence")
    assert loss == pytest.approx(-0.146947, abs=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5], [0.25]], atol=1e-9)
    with collect(seen := Collector(), t["mask"]):
        value()(t)
    assert seen.means() == {"topr/taper": pytest.approx(0.5), "topr/positive_share": 0.5, "topr/net_push": 0.25}


def test_the_baseline_sets_the_share_of_the_good() -> None:
    """One in ten is good, rewards 1 and -1, c = -1/2: the good are a quarter of all weight."""
    rewards = torch.tensor([1.0] + [-1.0] * 9, dtype=torch.float64)
    a = baseline_shift(raw_reward(rewards), delta=0.5)
    assert float(a[a > 0].sum() / a.abs().sum()) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("shift", "ratio", "push"),
    [
        (-0.5, 1.0, -0.3),  # fresh and two in ten good: the batch as a whole is pushed away
        (-0.2, 1.0, 0.0),  # a baseline at the mean reward: it is not
        (-0.1, 1.0, 0.1),
        (-0.5, 0.1, 0.06),  # stale: the bad ones are left already, and the good ones pull
        (-0.5, 9.0, -0.3),  # the policy came nearer to bad ones: never harder than fresh
    ],
)
def test_the_taper_needs_distance_and_else_the_baseline_decides(shift: float, ratio: float, push: float) -> None:
    """What drives the policy as a whole: the mean of w A, which is the loss's slope along a common log-prob."""
    rewards = torch.tensor([1.0] * 2 + [0.0] * 8, dtype=torch.float64)
    t = example([[ratio]] * 10, baseline_shift(raw_reward(rewards), delta=shift).numpy(), [1] * 10)
    with collect(seen := Collector(), t["mask"]):
        _, gradient, _ = differentiate(value(), t, "sequence")
    assert -gradient.sum() == pytest.approx(push) and seen.means()["topr/net_push"] == pytest.approx(push)


def test_rewards_of_0_and_1_with_the_recipes_shift_are_half_of_1_and_minus_1() -> None:
    rewards = torch.tensor([1.0, 0.0])
    assert torch.equal(2 * baseline_shift(raw_reward(rewards), delta=-0.5), 2 * rewards - 1)


def test_finite() -> None:
    for level in ("sequence", "token"):
        survives(value(level))
    positive = inputs.table("random", 2)
    positive["advantages"] = np.abs(positive["advantages"])  # elsewhere the detached weight is no function of logp
    check_gradient(value(), positive)


@pytest.mark.reduction("topr")
@given(st.integers(0, 10_000), st.sampled_from(["sequence", "token"]))
def test_on_policy_it_is_reinforce_with_a_baseline(seed: int, level: str) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["logp"] = t["logp_old"]
    _, gradient, _ = differentiate(value(level), t, "sequence")
    live = t["weights"] / t["weights"].ne(0).sum().clamp_min(1)
    want = -(t["advantages"] * live).unsqueeze(-1) * t["mask"]
    np.testing.assert_allclose(gradient, want.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.reduction("topr")
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_good_rollouts_are_imitated_wherever_the_policy_is(seed: int, moved: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["advantages"] = torch.ones_like(t["advantages"])
    here = topr(*(t[c] for c in COLUMNS))
    assert torch.equal(here, topr(t["logp"], t["logp_old"] + moved, t["advantages"], t["mask"]))
    torch.testing.assert_close(here, -torch.where(t["mask"], t["logp"], torch.zeros(()).double()).sum(-1))


@given(st.floats(-30, 30))
def test_bad_rollouts_are_pushed_less_the_farther_the_policy_is(gap: float) -> None:
    t = example([[math.exp(gap)]], [-1], [1])
    _, gradient, _ = differentiate(value(), t, "sequence")
    assert gradient[0, 0] == pytest.approx(min(1.0, math.exp(gap)))
