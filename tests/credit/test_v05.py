from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.v05 import v05 as oracle

from coterie.api import start
from coterie.credit import fused_value, group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fused(rewards: torch.Tensor, value: float, **settings: Any) -> torch.Tensor:
    """The advantage of one group under a prior that is given."""
    groups = torch.zeros(len(rewards), dtype=torch.long)
    piece = fused_value(prior_from="value", **{"scale": "none", **settings})
    return piece(rewards, groups, groups, {"value": torch.full_like(rewards, value)})


@pytest.mark.oracle("v05")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"scale": "none"}, {"trust": 2.0, "count": 8.0, "prior": 0.3, "keep": 1.0}])
@pytest.mark.parametrize("source", [None, "value"])
def test_four_visits_against_the_oracle(kind: str, settings: dict[str, Any], source: str | None) -> None:
    piece, counts = fused_value(prior_from=source, **settings), {}
    plain = {k: v for k, v in settings.items() if k != "scale"} | {"whiten": "scale" not in settings}
    for seed in range(4):
        n = inputs.table(kind, seed)
        prompts = (n["groups"] + seed) % 4
        values = np.random.default_rng(seed).choice([0.0, 0.2, 0.9, 1.0, 1.4, np.nan], len(prompts))
        priors = None if source is None else values.tolist()
        want = oracle(n["rewards"].tolist(), prompts.tolist(), counts, priors, **plain)
        t = inputs.tensors(n)
        got = piece(t["rewards"], t["groups"], torch.from_numpy(prompts), {"value": torch.from_numpy(values)})
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-8, atol=1e-10)


@pytest.mark.oracle("v05")
def test_numbers_of_the_source() -> None:
    np.testing.assert_allclose(fused(R(1, 0, 0, 0), 0.3).numpy(), [0.7, -0.3, -0.3, -0.3])
    np.testing.assert_allclose(fused(R(1, 1, 1, 1), 0.1).numpy(), [0.025] * 4, atol=1e-12)


@pytest.mark.parametrize(("value", "worth"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.125)])
def test_a_certain_prior_that_is_wrong_gives_way_at_once(value: float, worth: float) -> None:
    np.testing.assert_allclose(fused(R(1, 1, 1, 1), value).numpy(), [worth] * 4)


def test_its_own_record_is_the_prior_where_none_is_given() -> None:
    piece, groups = fused_value(scale="none", count=2.0, keep=1.0), torch.zeros(2, dtype=torch.long)
    for _ in range(3):
        piece(R(1, 1), groups, groups, {})
    got = piece(R(1, 0), groups, groups, {})  # 7 of 8, and half of the group is within one standard error
    variance = 7 / 64 / 2
    bias = (0.5 - 7 / 8) ** 2 - variance
    w = bias / (bias + variance)
    np.testing.assert_allclose(got.numpy(), R(1, 0) - (w * 0.5 + (1 - w) * 7 / 8))
    with pytest.raises(RewardError, match="'value', which no reward function gives"):
        fused_value(prior_from="value")(R(1, 0), groups, groups, {})
    blind = fused_value(prior_from="value", scale="none")
    nothing = {"value": R(math.nan, math.nan)}
    torch.testing.assert_close(blind(R(1, 0), groups, groups, nothing), R(0.5, -0.5))


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        fused(R(1, 1, 1, 1), 0.1)
    assert seen.means() == {
        "value/prior": pytest.approx(0.1), "value/distrusted_share": 1.0,
        "value/weight_of_mean": pytest.approx(1 - 0.0225 / 0.81),
    }  # fmt: skip


rates = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8).map(lambda r: R(*r))


@pytest.mark.reduction("v05")
@given(rates, st.floats(0.01, 0.99))
def test_it_lies_between_the_prior_alone_and_dr_grpo(rewards: torch.Tensor, value: float) -> None:
    alone = fused(rewards, value, trust=1e9)
    torch.testing.assert_close(alone, rewards - value)
    dr_grpo = group_norm(rewards, torch.zeros(len(rewards), dtype=torch.long), scale="none")
    sure = fused(rewards, float(value > 0.5))  # no sampling variance: whatever the mean says counts
    torch.testing.assert_close(sure, dr_grpo, rtol=1e-9, atol=1e-9)
    got, low, high = fused(rewards, value), torch.minimum(alone, dr_grpo), torch.maximum(alone, dr_grpo)
    assert ((got >= low - 1e-9) & (got <= high + 1e-9)).all()


def test_its_record_survives_a_resume(tmp_path: Path) -> None:
    over = [*TINY, "task.train=3", "draw.prompts=3", "task.dense=true", "steps=2", "checkpoint.every=1"]
    start(resolve(method="v05", overrides=over), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/state.pt", weights_only=True)
    fresh = fused_value()
    fresh.load_state_dict(saved["pieces"]["credit.baseline=fused_value"])
    assert fresh.tracker.memory.prompts.tolist() == [-1, 0, 1, 2]
    expected = 0.96 * (0.96 + 4) + 4
    np.testing.assert_allclose(fresh.tracker.memory.values[1:].sum(-1).numpy(), expected)
