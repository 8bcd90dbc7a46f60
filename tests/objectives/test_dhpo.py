from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import check_gradient, compare, differentiate, example, surrogate, survives
from oracles import inputs
from oracles.dhpo import dhpo

from coterie.metrics import Collector, collect
from coterie.objectives.losses import hybrid_clip

COLUMNS = ("logp", "logp_old", "entropy_old", "advantages", "groups", "weights", "mask")
WIDE = {"sequence_low": 0.05, "sequence_high": 0.1}


def value(**settings: Any) -> Any:
    return lambda t: hybrid_clip(*(t[c] for c in COLUMNS), **settings)


def oracle(**settings: Any) -> Any:
    def of(n: dict[str, Any]) -> Any:
        live = n["mask"] & (n["weights"] != 0)[:, None]
        return dhpo(*(n[c] for c in COLUMNS[:5]), live, **settings)

    return of


@pytest.mark.oracle("dhpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_against_the_oracle(kind: str) -> None:
    for seed in range(2):
        for by_decision in (False, True):
            n = inputs.table(kind, seed)
            n["entropy_old"] = np.abs(n["entropy_old"])
            if by_decision:
                n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
            compare(value(), oracle(), n)
            compare(value(**WIDE), oracle(whole=(0.05, 0.1)), n)
            compare(value(mix="constant", share=0.3, **WIDE), oracle(share=0.3, whole=(0.05, 0.1)), n)


@pytest.mark.oracle("dhpo")
def test_numbers_of_the_source() -> None:
    t = example([[1.5, 1.0]], [1], [2]) | {"entropy_old": torch.ones(1, 2, dtype=torch.float64)}
    settings = {"mix": "constant", "share": 0.5, "sequence_low": 0.1, "sequence_high": 0.1}
    loss, gradient, _ = differentiate(value(**settings), t, "sequence")
    assert loss == pytest.approx(-1.1)
    np.testing.assert_allclose(gradient, [[0, -0.25]], atol=1e-12)
    with collect(seen := Collector(), t["mask"]):
        value(**settings)(t)
    assert seen.means() == {"dhpo/token_share": 0.5, "clip/token_fraction": 0.5, "clip/sequence_fraction": 1.0}


def test_the_most_uncertain_decision_of_the_group_looks_at_itself_alone() -> None:
    t = example([[1.1, 0.9], [1.2, 1.0]], [1, 1], [2, 2])
    t["entropy_old"] = torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    with collect(seen := Collector(), t["mask"]):
        out = value(sequence_low=9.0, sequence_high=9.0)(t)
    assert seen.means()["dhpo/token_share"] == pytest.approx((1 + 0.25 + 0 + 0.5) / 4)
    assert float(out[0, 0]) == pytest.approx(-1.1) and float(out[1, 0]) == pytest.approx(-(1.2**0.5))


def test_smooth_and_finite() -> None:
    n = inputs.table("random", 5)
    check_gradient(value(eps_low=9.0, eps_high=9.0, sequence_low=9.0, sequence_high=9.0), n)
    for settings in ({}, {"mix": "constant"}):
        survives(value(**settings))


def update(seed: int) -> dict[str, Any]:
    t = inputs.tensors(inputs.table("random", seed))
    return t | {"weights": (t["weights"] != 0).double()}


def same(a: Any, b: Any) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-11, abs=1e-13)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-10, atol=1e-13)


@pytest.mark.reduction("dhpo")
@given(st.integers(0, 10_000), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_the_tokens_ratio_alone_is_grpo(seed: int, low: float, high: float) -> None:
    clip = {"eps_low": low, "eps_high": high}
    mine = differentiate(value(mix="constant", share=1.0, **clip), update(seed), "sequence")
    same(mine, differentiate(surrogate("token", "ppo_clip", **clip), update(seed), "sequence"))


@pytest.mark.reduction("dhpo")
@given(st.integers(0, 10_000), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_the_sequences_ratio_alone_is_gspo(seed: int, low: float, high: float) -> None:
    t = update(seed)
    theirs = differentiate(surrogate("sequence", "ppo_clip", eps_low=low, eps_high=high), t, "sequence")
    clip = {"sequence_low": low, "sequence_high": high}
    same(differentiate(value(mix="constant", share=0.0, **clip), t, "sequence"), theirs)
    t["entropy_old"] = torch.zeros_like(t["entropy_old"])
    same(differentiate(value(**clip), t, "sequence"), theirs)
