from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.ace import ace as oracle

from coterie.credit import ace
from coterie.metrics import Collector, collect

NAMES = ("logp_old", "logp_ref", "mask", "correct")


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


def logps(*shifts: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rollouts of one decision whose log-ratios to the reference are these."""
    ref = -5 * torch.ones(len(shifts), 1, dtype=torch.float64)
    return ref + R(*shifts).unsqueeze(-1), ref, torch.ones_like(ref, dtype=torch.bool)


@pytest.mark.oracle("ace")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("confidence", ["mean", "sum"])
def test_against_the_oracle(kind: str, confidence: Any) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        for alpha, count in ((1.0, 4), (0.3, 4), (1.0, 3)):  # with and without a verifier
            settings = {"alpha": alpha, "confidence": confidence}
            want = oracle(n["advantages"], *(n[c] for c in NAMES[:count]), **settings)
            near(ace(t["advantages"], *(t[c] for c in NAMES[:count]), **settings), want)
            wide = ace(
                t["advantages"].unsqueeze(-1) * R(1, -1, *[0] * (inputs.T - 2)), *(t[c] for c in NAMES), **settings
            )
            near(wide[:, 0], oracle(n["advantages"], *(n[c] for c in NAMES), **settings))
            near(wide[:, 1], oracle(-n["advantages"], *(n[c] for c in NAMES), **settings))


@pytest.mark.oracle("ace")
def test_numbers_of_the_source() -> None:
    near(ace(R(1.5, -0.5, -0.5, -0.5), *logps(0, 1, 0, -3)), [1.5, -1.156631, -0.846574, -0.524294], 1e-6)


def test_correct_rollouts_are_left_alone_even_below_the_mean() -> None:
    a, correct = R(-1, -1), torch.tensor([True, False])
    near(ace(a, *logps(2, 2), correct), [-1, -1 - math.log1p(math.exp(2))])


def test_long_and_absurd_ratios_stay_finite() -> None:
    t = inputs.tensors(inputs.table("huge_ratios"), torch.float32)
    got = ace(t["advantages"], t["logp_old"], t["logp_old"] - 500, t["mask"], confidence="sum")
    assert got.isfinite().all()


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        ace(R(1.5, -0.5, -0.5, -0.5), *logps(9, 1, 0, -3))
        ace(R(1.5, -0.5, -0.5, -0.5).unsqueeze(-1), *logps(9, 1, 0, -3))
    assert seen.means() == {"ace/confidence": pytest.approx(-2 / 3), "ace/overconfident_share": pytest.approx(1 / 3)}


@pytest.mark.reduction("ace")
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_alpha_zero_is_identity_and_only_errors_change(seed: int, alpha: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    a, columns = t["advantages"], [t[c] for c in NAMES]
    assert torch.equal(ace(a, *columns, alpha=0.0), a)
    got = ace(a, *columns, alpha=alpha)
    untouched = (a >= 0) | t["correct"]
    assert torch.equal(got[untouched], a[untouched]) and (got <= a).all()


@pytest.mark.reduction("ace")
@given(st.floats(-8, 8), st.floats(-8, 8))
def test_the_more_confident_error_is_punished_harder(first: float, second: float) -> None:
    got = ace(R(-1, -1), *logps(first, second))
    assert (got[0] - got[1]) * (first - second) <= 0
    near(ace(R(-1), *logps(0)), [-1 - math.log(2)])  # on the reference the factor is not 1
