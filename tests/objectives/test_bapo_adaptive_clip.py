from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_checks import compare, differentiate, example, surrogate, survives
from oracles import inputs
from oracles.bapo_adaptive_clip import bapo

from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.objectives.trust_regions import balanced_clip

COLUMNS = ("logp", "logp_old", "advantages", "mask", "groups")


def value(ratio: str = "token", **settings: Any) -> Any:
    return surrogate(ratio, "balanced_clip", "groups", "mask", **settings)


OTHER = {"target": 1.7, "low": 0.5, "low_max": 0.95, "low_step": 0.1, "high": 1.05, "high_max": 1.6, "high_step": 0.2}
THEIRS = {"target": 1.7, "low": (0.5, 0.95, 0.1), "high": (1.05, 1.6, 0.2), "dual": None}


@pytest.mark.oracle("bapo-adaptive-clip")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        for ours, theirs in (({}, {}), (OTHER | {"dual": None}, THEIRS)):
            n = inputs.table(kind, seed)
            compare(value(**ours), lambda n, s=theirs: bapo(*(n[c] for c in COLUMNS), **s), n)
            n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
            compare(value(**ours), lambda n, s=theirs: bapo(*(n[c] for c in COLUMNS), **s), n)


def reported(t: dict[str, Any], **settings: Any) -> dict[str, float]:
    with collect(seen := Collector(), t["mask"]):
        value(**settings)(t)
    return seen.means()


@pytest.mark.oracle("bapo-adaptive-clip")
def test_numbers_of_the_source() -> None:
    t = example([[1.5], [0.75]], [1, -2], [1, 1])
    loss, gradient, _ = differentiate(value(), t, "token")
    assert loss == pytest.approx(0.05)
    np.testing.assert_allclose(gradient, [[-0.75], [0]], atol=1e-12)
    want = {"bapo/low": 0.8, "bapo/high": 2.0, "bapo/short_share": 1.0, "clip/fraction": 0.5}
    assert reported(t) == pytest.approx(want)


def test_it_opens_only_as_far_as_it_must() -> None:
    t = example([[1.5], [0.75], [0.5]], [1, -1, -0.5], [1, 1, 1])
    assert reported(t)["bapo/low"] == 0.6 and reported(t)["bapo/high"] == 1.2  # 1.2 against .75 + .3
    t["advantages"] *= torch.tensor([1, 1.2, 1.2], dtype=torch.float64)  # 1.2 against .9 + .36: hi follows when lo ends
    assert reported(t)["bapo/low"] == pytest.approx(0.8) and reported(t)["bapo/high"] == pytest.approx(1.45)
    t["advantages"] = t["advantages"].abs()
    assert reported(t)["bapo/low"] == 0.6 and reported(t)["bapo/short_share"] == 0


@pytest.mark.parametrize("ratio", ["token", "sequence", "turn"])
def test_finite(ratio: str) -> None:
    if ratio == "turn":
        t = inputs.tensors(inputs.table("huge_ratios"))
        r = torch.where(t["mask"], (t["logp"] - t["logp_old"]).exp(), torch.ones(()).double())
        assert balanced_clip(r, t["advantages"], t["groups"], t["mask"]).isfinite().all()
    else:
        survives(value(ratio))


@pytest.mark.reduction("bapo-adaptive-clip")
@given(st.integers(0, 10_000), st.floats(0.5, 0.99), st.floats(1.01, 1.5), st.sampled_from([None, 3.0]))
def test_without_a_target_it_is_ppos_clip(seed: int, low: float, high: float, dual: float | None) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    bound = {"low": low, "low_max": 1.0, "high": high, "dual": dual}
    mine = differentiate(value(target=0.0, **bound), t, "token")
    clip = surrogate("token", "ppo_clip", eps_low=1 - low, eps_high=high - 1, dual=dual)
    theirs = differentiate(clip, t, "token")
    assert mine[0] == pytest.approx(theirs[0], rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-12, atol=1e-14)


@given(st.integers(0, 10_000))
def test_a_higher_target_never_closes_the_bounds(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    found = [reported(t, target=target) for target in (0.2, 1.0, 5.0)]
    assert [f["bapo/low"] for f in found] == sorted(f["bapo/low"] for f in found)
    assert [f["bapo/high"] for f in found] == sorted(f["bapo/high"] for f in found)


@pytest.mark.parametrize("settings", [{"low_step": 0.0}, {"low": 0.9}, {"high": 3.0}, {"dual": 0.5}], ids=str)
def test_what_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="balanced_clip"):
        reported(example([[1.0]], [1], [1]), **settings)
