from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.riskpo import riskpo as oracle

from coterie.api import start
from coterie.credit import mixed_value_at_risk
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from tests.e2e.conftest import TINY

SETTINGS: list[dict[str, Any]] = [
    {}, {"bundle": 1}, {"bundle": 2, "share": "uniform"}, {"bundle": 3, "natural": True, "high": 0.9},
    {"bundle": 2, "scale": "none", "tail": 0.0, "rate": 0.5},
]  # fmt: skip


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tracked(low: float, high: float, **settings: Any) -> mixed_value_at_risk:
    piece = mixed_value_at_risk(**settings)
    piece.load_state_dict({"quantiles": R(low, high)})
    return piece


@pytest.mark.oracle("riskpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_four_batches_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    piece, quantiles = mixed_value_at_risk(**settings), []
    for seed in range(4):
        n = inputs.table(kind, seed)
        if seed == 1:
            n["rewards"] = np.round(n["rewards"])
        t = inputs.tensors(n)
        want = oracle(n["rewards"].tolist(), n["groups"].tolist(), quantiles, **settings)
        np.testing.assert_allclose(piece(t["rewards"], t["groups"]).numpy(), want, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(piece.quantiles.numpy(), quantiles, rtol=1e-12)


@pytest.mark.oracle("riskpo")
def test_numbers_of_the_source() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    piece = tracked(0.5, 1.5, bundle=2)
    got = piece(R(1, 0, 0, 1, 1, 0), groups)
    want = [0.444443, 0.166666, -0.499997, 0.222222, 0.166666, -0.999994]
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)
    piece = tracked(0.5, 1.5, bundle=1)
    piece(R(0, 1, 2, 1), torch.zeros(4, dtype=torch.long))
    np.testing.assert_allclose(piece.quantiles.numpy(), [0.495, 1.505], atol=1e-12)


def test_all_wrong_bundles_are_pushed_down_within_bounds() -> None:
    got = tracked(1.0, 3.0)(torch.zeros(40), torch.arange(5).repeat_interleave(8))
    np.testing.assert_allclose(got.numpy(), -1.5 * 1.0 / (0.2 + 1e-6) / 2.5 / 5, rtol=1e-6)
    best = tracked(1.0, 3.0)(torch.ones(40), torch.arange(5).repeat_interleave(8))
    assert (best > 0).all() and (best < 1).all()


def test_bundles_follow_the_order_of_the_rows() -> None:
    groups = torch.tensor([9, 9, 2, 2, 5, 5, 7, 7])
    rewards = R(1, 0, 1, 0, 0, 0, 1, 1)
    whole = tracked(0.5, 1.5, bundle=2)(rewards, groups)
    for part in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(whole[part], tracked(0.5, 1.5, bundle=2)(rewards[part], groups[part]))


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        tracked(0.5, 1.5, bundle=2)(R(1, 0, 0, 1, 1, 0), torch.tensor([0, 0, 0, 1, 1, 1]))
    low, high, tail = 0.5, 1.5, pytest.approx(1 / 3)
    assert seen.means() == {"risk/low_quantile": low, "risk/high_quantile": high, "risk/tail_share": tail}


@pytest.mark.reduction("riskpo")
@given(st.lists(st.tuples(st.floats(-3, 3, allow_subnormal=False), st.integers(0, 3)), min_size=2, max_size=14))
def test_one_prompt_a_bundle_over_the_whole_range_is_reward_minus_the_maximum(rows: list[tuple[float, int]]) -> None:
    rewards, groups = R(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])
    settings: dict[str, Any] = {"low": 0.0, "high": 1.0, "tail": 0.0, "natural": True, "share": "uniform"}
    piece = mixed_value_at_risk(bundle=1, scale="none", eps=1e-12, **settings)
    torch.testing.assert_close(piece(rewards, groups), rewards - rewards.max(), rtol=1e-9, atol=1e-9)


def test_its_quantiles_survive_a_resume(tmp_path: Path) -> None:
    over = [*TINY, "task.dense=true", "steps=2", "checkpoint.every=1"]
    start(resolve(method="riskpo", overrides=over), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/state.pt", weights_only=True)
    state = saved["pieces"]["credit.baseline=mixed_value_at_risk"]
    fresh = mixed_value_at_risk()
    fresh.load_state_dict(state)
    assert fresh.quantiles.shape == (2,) and torch.equal(fresh.quantiles, state["quantiles"])
