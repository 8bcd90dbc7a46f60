from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.mssr import entropy_advantage as oracle

from coterie.credit import entropy_advantage, tracked_value
from coterie.metrics import Collector, collect


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def table(kind: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    n = inputs.table(kind, seed)
    n["entropy_old"] = np.abs(n["entropy_old"])
    return n, inputs.tensors(n)


@pytest.mark.oracle("mssr")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"coef": 2.0}, {"kappa": 1.0}, {"coef": 0.05, "kappa": 8.0}])
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = table(kind, seed)
        wide = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        for a in (n["advantages"], wide):
            want = oracle(a.tolist(), n["entropy_old"].tolist(), n["mask"], **settings)
            got = entropy_advantage(torch.from_numpy(a), t["entropy_old"], t["mask"], **settings)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


@pytest.mark.oracle("mssr")
def test_numbers_of_the_source() -> None:
    """The advantages of three single rollouts, and the bonus on them."""
    piece = tracked_value()
    counts = R(0, 0, 4, 4, 4, 4, 0.5, 7.5).view(4, 2)
    piece.load_state_dict({"prompts": torch.tensor([-1, 0, 1, 2]), "values": counts})
    rows = torch.arange(3)
    a = piece(R(1, 0, 1), rows, rows, R(0, 0.06, 0.01), {})
    got = entropy_advantage(a, R(2, 0.1).expand(3, 2), torch.ones(3, 2, dtype=torch.bool))
    want = [[0.381685, 0.294457], [-0.551323, -1.062646], [1.272283, 0.888189]]
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        entropy_advantage(R(1, -1), R(0.5, 9).expand(2, 2), torch.tensor([[True, True], [True, False]]))
    assert seen.means() == {
        "shaping/entropy_bonus": pytest.approx((0.2 + 0.5 + 0.2) / 3), "shaping/capped_share": pytest.approx(1 / 3),
    }  # fmt: skip


@pytest.mark.reduction("mssr")
@given(st.integers(0, 10_000), st.floats(1.001, 50))
def test_without_a_coefficient_it_is_spo_single_and_no_sign_ever_changes(seed: int, kappa: float) -> None:
    _, t = table("random", seed)
    a, mask = t["advantages"].unsqueeze(-1).expand(t["mask"].shape), t["mask"]
    columns = (t["advantages"], t["entropy_old"], mask)
    assert torch.equal(entropy_advantage(*columns, coef=0.0)[mask], a[mask])
    got = entropy_advantage(*columns, coef=9.0, kappa=kappa)[mask]
    assert (got.sign() == a[mask].sign()).all() and (got >= a[mask]).all()
    assert ((got - a[mask]) <= a[mask].abs() / kappa + 1e-12).all()
