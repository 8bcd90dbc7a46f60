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
from oracles.grpo_s import factors

from coterie.api import start
from coterie.credit import difficulty_scale, group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from tests.e2e.conftest import TINY
from tests.e2e.test_methods import functions

FOUR = torch.zeros(4, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.oracle("grpo-s")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"cap": 3.0, "decay": 0.5}, {"demonstration_from": "format"}])
def test_three_batches_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    piece, state = difficulty_scale(**settings), {}
    numbers = {k: v for k, v in settings.items() if k in ("cap", "decay")}
    for seed in range(3):
        n = inputs.table(kind, seed)
        hard = np.random.default_rng(seed).choice([0.0, 0.3, 1.0, np.nan], len(n["rewards"]))
        shown = n["components"]["format"] if "demonstration_from" in settings else np.ones_like(n["rewards"])
        want = factors(n["rewards"].tolist(), n["groups"].tolist(), hard.tolist(), shown.tolist(), state, **numbers)
        t = inputs.tensors(n)
        parts = {**t["components"], "hardness": torch.from_numpy(hard)}
        got = piece(t["advantages"], t["rewards"], t["groups"], parts)
        np.testing.assert_allclose(got.numpy(), n["advantages"] * want, rtol=1e-9, atol=1e-12)
        assert piece.running == pytest.approx(state["gap"])


@pytest.mark.oracle("grpo-s")
def test_numbers_of_the_source() -> None:
    """Hardness 0.8, a gap of 2 where 1 is usual: the advantages of GRPO times 0.4."""
    piece, rewards = difficulty_scale(demonstration=2.5), R(1, 0, 1, 0)
    piece.running = 1.0
    got = piece(group_norm(rewards, FOUR), rewards, FOUR, {"hardness": R(0.8, 0.8, 0.8, 0.8)})
    np.testing.assert_allclose(got.numpy(), [0.34635, -0.34635, 0.34635, -0.34635], atol=1e-5)


def test_advantages_by_decision_and_what_is_missing() -> None:
    piece, rewards = difficulty_scale(), R(1, 1, 1, 1)
    wide = torch.arange(8, dtype=torch.float64).view(4, 2)
    unknown = {"hardness": R(math.nan, math.nan, math.nan, math.nan)}
    assert torch.equal(piece(wide, rewards, FOUR, unknown), wide), "reached, and of unknown hardness"
    with pytest.raises(RewardError, match="'hardness', which no reward function gives"):
        piece(wide, rewards, FOUR, {})


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        groups = torch.tensor([0, 0, 1, 1])
        difficulty_scale()(R(1, 1, 1, 1), R(0, 1, 0, 0), groups, {"hardness": R(0.5, 0.5, 1, 1)})
    assert seen.means() == {
        "difficulty/hardness": 0.75, "difficulty/gap": 0.75, "difficulty/responsiveness": 0.875,
        "difficulty/factor": (0.5 + 0.75) / 2,
    }  # fmt: skip


@pytest.mark.reduction("grpo-s")
@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3)), min_size=1, max_size=12), st.floats(0, 1))
def test_prompts_alike_are_grpo_at_another_learning_rate(rows: list[tuple[float, int]], hard: float) -> None:
    """Of one hardness and one gap; and the factor never changes a sign, nor exceeds hardness times cap."""
    rewards, groups = R(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])
    a, parts = group_norm(rewards, groups), {"hardness": torch.full_like(rewards, hard)}
    alike = difficulty_scale(demonstration_from="mean")
    mean = torch.zeros_like(rewards)
    for g in groups.unique():
        mean[groups == g] = rewards[groups == g].mean() + 0.5
    torch.testing.assert_close(alike(a, rewards, groups, {**parts, "mean": mean}), hard * a)
    got = difficulty_scale(cap=2.0)(a, rewards, groups, parts)
    assert (got * a >= 0).all() and (got.abs() <= 2 * hard * a.abs() + 1e-9).all()


def test_its_running_mean_survives_a_resume(tmp_path: Path) -> None:
    over = [*TINY, functions("positions", "hardness=0"), "steps=2", "checkpoint.every=1"]
    start(resolve(method="grpo-s", overrides=over), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/state.pt", weights_only=True)
    state = saved["pieces"]["credit.modifiers=difficulty_scale"]
    fresh = difficulty_scale()
    fresh.load_state_dict(state)
    assert fresh.running is not None and 0 < fresh.running == state["running"] <= 1
