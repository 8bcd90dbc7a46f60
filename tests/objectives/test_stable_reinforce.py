from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import compare, differentiate, example, surrogate, survives
from oracles import inputs, stable_reinforce

from coterie import methods
from coterie.credit import clip_advantage, whitened_return
from coterie.metrics import Collector, collect
from coterie.objectives import ratios, trust_regions

LIMIT = math.log(1000)


def value(t: dict[str, Any]) -> torch.Tensor:
    r = ratios.token(t["logp"], t["logp_old"], t["mask"], limit=LIMIT)
    return -trust_regions.ppo_clip(r, t["advantages"])


def credit(t: dict[str, Any]) -> torch.Tensor:
    a = whitened_return(t["token_rewards"], t["mask"], t["groups"], t["rewards"], ddof=0)
    return clip_advantage(a, t["mask"], bound=3.0, beyond="zero")


@pytest.mark.oracle("stable-reinforce")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["logp"] = n["logp_old"] + 5 * (n["logp"] - n["logp_old"])
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(value, lambda n: stable_reinforce.loss(*(n[c] for c in ("logp", "logp_old", "advantages", "mask"))), n)


@pytest.mark.oracle("stable-reinforce")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_credit_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["rewards"][0] += 40.0 * (kind != "all_equal")  # an outlier
        n["token_rewards"] = inputs.last(n["mask"]) * n["rewards"][:, None]
        want = stable_reinforce.advantages(n["mask"] * n["rewards"][:, None], n["mask"])
        np.testing.assert_allclose(credit(inputs.tensors(n)).numpy(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("stable-reinforce")
def test_numbers_of_the_source() -> None:
    """Log-ratios 9 and -8, returns 1 and 0: advantages 1 and -1, and both ratios are far out."""
    t = example([[math.exp(9)], [math.exp(-8)]], [0, 0], [1, 1])
    t["rewards"] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    t["token_rewards"] = t["rewards"].unsqueeze(-1)
    t["advantages"] = credit(t)
    np.testing.assert_allclose(t["advantages"][:, 0], [1, -1], atol=1e-6)
    loss, gradient, _ = differentiate(value, t, "sequence")
    assert loss == pytest.approx(-0.2, abs=1e-6)
    assert (gradient == 0).all()


def test_far_log_ratios_are_flat_even_where_ppo_would_pull() -> None:
    """A bad decision far above 1 has PPO's steepest gradient; beyond the limit it has none."""
    t = example([[math.exp(6.8)], [math.exp(7.0)]], [-1, -1], [1, 1])
    _, gradient, out = differentiate(value, t, "sequence")
    assert gradient[0, 0] == pytest.approx(math.exp(6.8) / 2) and gradient[1, 0] == 0
    assert float(out[1, 0]) == pytest.approx(1000)


def test_outliers_have_no_advantage() -> None:
    a, mask = torch.tensor([-4.0, -3.0, 0.5, 3.5]), torch.ones(4, 1, dtype=torch.bool)
    with collect(seen := Collector()):
        assert clip_advantage(a, mask, bound=3.0, beyond="zero").tolist() == [0, -3, 0.5, 0]
    assert seen.means() == {"credit/clipped_share": 0.5}
    assert clip_advantage(a, mask, bound=3.0).tolist() == [-3, -3, 0.5, 3]


def test_finite_and_the_recipes_limit() -> None:
    survives(value)
    limit = methods.load("stable-reinforce").layer.tree["objective"]["ratio"]["token"]["limit"]
    assert limit == pytest.approx(LIMIT, abs=1e-12)


@pytest.mark.reduction("stable-reinforce")
@given(st.integers(0, 10_000))
def test_with_no_far_ratio_and_no_outlier_it_is_reinforce_plus_plus(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["token_rewards"] = torch.from_numpy(inputs.last(t["mask"].numpy())) * t["rewards"].unsqueeze(-1)
    plain = whitened_return(t["token_rewards"], t["mask"], t["groups"], t["rewards"], ddof=0)
    t["advantages"] = credit(t)
    usual = plain.abs() <= 3
    assert torch.equal(t["advantages"][usual], plain[usual]) and (t["advantages"][~usual] == 0).all()
    mine, theirs = (differentiate(v, t, "sequence") for v in (value, surrogate("token", "ppo_clip")))
    assert mine[0] == theirs[0] and (mine[1] == theirs[1]).all()
