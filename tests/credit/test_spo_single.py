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
from oracles.spo_single import spo as oracle

from coterie.api import start
from coterie.credit import tracked_value
from coterie.errors import RecipeError, RewardError
from coterie.memory import PromptMemory, visits
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def N(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def call(piece: tracked_value, rewards: torch.Tensor, prompts: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
    return piece(rewards, torch.arange(len(rewards)), prompts, drift, {})


@pytest.mark.oracle("spo-single", "mssr")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"scale": "none"}, {"count": 8.0, "prior": 0.25, "half_life": 0.5}])
def test_four_visits_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    piece, counts = tracked_value(**settings), {}
    plain = {k: v for k, v in settings.items() if k != "scale"} | {"whiten": "scale" not in settings}
    for seed in range(4):
        n = inputs.table(kind, seed)
        prompts = (n["groups"] + seed) % 4 - (seed == 2)  # in one batch some have no index
        drift = 0.02 * (prompts + 1) * seed
        want = oracle(n["rewards"].tolist(), prompts.tolist(), drift.tolist(), counts, **plain)
        t = inputs.tensors(n)
        got = piece(t["rewards"], t["groups"], torch.from_numpy(prompts), torch.from_numpy(drift), t["components"])
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)
    kept = piece.tracker.memory
    got = dict(zip(kept.prompts[1:].tolist(), kept.values[1:].tolist(), strict=True))
    assert got == {p: pytest.approx(list(c)) for p, c in counts.items()}


@pytest.mark.oracle("spo-single")
def test_numbers_of_the_source() -> None:
    piece = tracked_value()
    piece.load_state_dict({"prompts": N(-1, 0, 1, 2), "values": R(0, 0, 4, 4, 4, 4, 0.5, 7.5).view(4, 2)})
    got = call(piece, R(1, 0, 1), N(0, 1, 2), R(0, 0.06, 0.01))
    np.testing.assert_allclose(got.numpy(), [0.254457, -1.102646, 0.848189], atol=1e-6)
    np.testing.assert_allclose(piece.tracker.memory.values[1:, 0].numpy(), [4.84, 3.5, 1.445449], atol=1e-6)


def test_a_lone_failure_on_a_solved_prompt_stands_out() -> None:
    piece = tracked_value(scale="none")
    for _ in range(60):
        call(piece, R(1), N(3), R(0))
    assert -1 < float(call(piece, R(0), N(3), R(0))) < -0.95


def test_prompts_without_an_index_are_new_each_time() -> None:
    piece = tracked_value(scale="none")
    for _ in range(3):
        assert call(piece, R(1, 0), N(-1, -1), R(0, 0)).tolist() == [0.5, -0.5]
    assert len(piece.tracker.memory) == 0


def test_an_estimate_from_before_training_is_a_named_reward() -> None:
    piece = tracked_value(scale="none", prior_from="estimate", count=8)
    given = {"estimate": R(0.25, 0.25, math.nan)}
    got = piece(R(1, 0, 1), N(0, 0, 1), N(0, 0, 1), R(0, 0, 0), given)
    np.testing.assert_allclose(got.numpy(), [0.75, -0.25, 0.5])
    np.testing.assert_allclose(piece.tracker.memory.values[1].numpy(), [0.96 * 2 + 1, 0.96 * 6 + 1])
    with pytest.raises(RewardError, match="'estimate', which no reward function gives"):
        piece(R(1), N(0), N(0), R(0), {})
    with pytest.raises(RecipeError, match="count"):
        call(tracked_value(count=0), R(1), N(0), R(0))


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        call(tracked_value(), R(1, 0.5), N(0, 1), R(0, 0.6))
    assert seen.means() == {
        "value/rate": 0.5, "value/error": 0.25, "value/kept": pytest.approx(0.9175), "value/drift": 0.3,
    }  # fmt: skip


@pytest.mark.reduction("spo-single")
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=6))
def test_without_forgetting_it_is_reward_minus_the_running_success_rate(batches: list[list[bool]]) -> None:
    piece = tracked_value(scale="none", least=1.0, most=1.0, count=1.0)
    past: list[float] = []
    for outcomes in batches:
        rewards = R(*map(float, outcomes))
        rate = (0.5 + sum(past)) / (1 + len(past))
        got = call(piece, rewards, torch.zeros(len(outcomes), dtype=torch.long), torch.full_like(rewards, 9.0))
        torch.testing.assert_close(got, rewards - rate)
        past += rewards.tolist()


def test_a_memory_keeps_the_last_row_of_each_prompt() -> None:
    memory, first = PromptMemory(1), R(-7)
    memory.write(N(5, 2, 5, -1), R(1, 2, 3, 4).unsqueeze(-1))
    memory.write(N(9, 2), R(6, 8).unsqueeze(-1))
    rows, known = memory.read(N(2, 9, 5, -1, 4, 99), first)
    assert rows.squeeze(-1).tolist() == [8, 6, 3, -7, -7, -7]
    assert known.tolist() == [True, True, True, False, False, False]
    again = PromptMemory(1)
    again.load_state_dict(memory.state_dict())
    assert len(again) == 3 and torch.equal(again.read(N(5), first)[0], R(3).unsqueeze(-1))


def test_one_visit_is_all_rollouts_of_a_prompt() -> None:
    labels = visits(N(4, 4, 4, -1, -1, -1), N(0, 0, 1, 2, 2, 3)).tolist()
    assert labels[0] == labels[1] == labels[2] and labels[3] == labels[4] != labels[5] and len(set(labels)) == 3


def test_its_counts_survive_a_resume(tmp_path: Path) -> None:
    over = [*TINY, "task.train=3", "draw.prompts=3", "task.dense=true", "steps=2", "checkpoint.every=1"]
    start(resolve(method="spo-single", overrides=over), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/state.pt", weights_only=True)
    state = saved["pieces"]["credit.baseline=tracked_value"]
    fresh = tracked_value()
    fresh.load_state_dict(state)
    assert fresh.tracker.memory.prompts.tolist() == [-1, 0, 1, 2]
    assert fresh.tracker.memory.values[1:].sum() > 3 * 4 and sorted(saved["history"]["last"]) == [0, 1, 2]
