from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.xrpo import novelty_sharpening as oracle

from coterie.credit import group_norm, novelty_sharpening
from coterie.metrics import Collector, collect

NAMES = ("groups", "logp_old", "mask", "correct")


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


FOUR, ONE = torch.zeros(4, dtype=torch.long), torch.ones(4, 1, dtype=torch.bool)
LOGP = R(-1, -3, -2, -2).unsqueeze(-1)


@pytest.mark.oracle("xrpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("verifier", [True, False])
def test_against_the_oracle(kind: str, verifier: bool) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        n["correct"] = n["correct"] if verifier else None
        t = inputs.tensors({k: v for k, v in n.items() if v is not None})
        columns = [t.get(c) for c in NAMES]
        for settings in ({}, {"strength": 0.4, "cap": 5.0}, {"strength": 3.0, "cap": 0.1}):
            want = oracle(n["advantages"], *(n[c] for c in NAMES), **settings)
            near(novelty_sharpening(t["advantages"], *columns, **settings), want)
            wide = t["advantages"].unsqueeze(-1) * R(*range(1, inputs.T + 1))
            got = novelty_sharpening(wide, *columns, **settings)
            for j in range(inputs.T):
                near(got[:, j], oracle(n["advantages"] * (j + 1), *(n[c] for c in NAMES), **settings))


@pytest.mark.oracle("xrpo")
def test_numbers_of_the_source() -> None:
    a = group_norm(R(1, 1, 0, 0), FOUR, eps=1e-9)
    near(a, [0.866025, 0.866025, -0.866025, -0.866025], 1e-6)
    near(novelty_sharpening(a, FOUR, LOGP, ONE), [0.866025, 1.498146, -0.866025, -0.866025], 1e-6)


def test_a_rare_mistake_gains_nothing() -> None:
    a = R(1, 1, -1, -1)
    correct = torch.tensor([True, False, False, False])  # the second is praised for something else
    assert torch.equal(novelty_sharpening(a, FOUR, LOGP, ONE, correct), a)
    assert (novelty_sharpening(R(0, 0, 0, 0), FOUR, LOGP, ONE) == 0).all()


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        novelty_sharpening(R(1, 1, -1, -1), FOUR, LOGP, ONE, cap=0.5)
        wide = R(1, 1, -1, -1).unsqueeze(-1).expand(4, 2)
        mask = torch.tensor([[True, False]] * 4)
        novelty_sharpening(wide, FOUR, LOGP.expand(4, 2), mask, cap=0.5)
    assert seen.means() == {"xrpo/sharpened_share": 0.25, "xrpo/bonus": 0.125}


@pytest.mark.reduction("xrpo")
@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0, 2))
def test_strength_zero_is_identity_and_the_bonus_is_bounded(seed: int, strength: float, cap: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    columns = [t[c] for c in NAMES[:3]]
    a = t["advantages"]
    assert torch.equal(novelty_sharpening(a, *columns, strength=0.0), a)
    bonus = novelty_sharpening(a, *columns, strength=strength, cap=cap) - a
    assert (bonus[a <= 0] == 0).all() and (bonus >= 0).all()
    assert (bonus[a > 0] <= cap * a[a > 0] + 1e-12).all() and (bonus <= strength + 1e-12).all()


@pytest.mark.reduction("xrpo")
@given(st.floats(-9, 0), st.floats(-9, 0))
def test_of_two_right_rollouts_the_rarer_never_gets_less(first: float, second: float) -> None:
    logp = R(first, second, -1, -4).unsqueeze(-1)
    got = novelty_sharpening(R(1, 1, -1, -1), FOUR, logp, ONE)
    assert (got[0] - got[1]) * (first - second) <= 0
