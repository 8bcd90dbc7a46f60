from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.dcpo_sas import visit as oracle

from coterie.api import start
from coterie.credit import group_norm, smooth_standardisation
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def call(piece: smooth_standardisation, rewards: list[list[float]], prompts: list[int]) -> list[list[float]]:
    sizes = [len(r) for r in rewards]
    groups = torch.arange(len(prompts)).repeat_interleave(torch.tensor(sizes))
    flat = torch.tensor([x for r in rewards for x in r], dtype=torch.float64)
    out = piece(flat, groups, torch.tensor(prompts)[groups])
    return [part.tolist() for part in out.split(sizes)]


@pytest.mark.oracle("dcpo-sas", "dcpo")
@pytest.mark.parametrize("ddof", [0, 1])
def test_against_the_oracle_over_many_visits(ddof: int) -> None:
    rng, piece = np.random.default_rng(0), smooth_standardisation(ddof=ddof)
    history: dict[int, list[list[float]]] = {}
    for _ in range(12):
        prompts = rng.choice(9, 4, replace=False).tolist()
        rewards = [rng.integers(0, 2 + p % 3, 2 + p % 4).astype(float).tolist() for p in prompts]
        got = call(piece, rewards, prompts)
        for p, r, g in zip(prompts, rewards, got, strict=True):
            np.testing.assert_allclose(g, oracle(history.setdefault(p, []), r, ddof), rtol=1e-9, atol=1e-12)
            history[p].append(r)


@pytest.mark.oracle("dcpo-sas", "dcpo")
def test_numbers_of_the_source() -> None:
    piece = smooth_standardisation()
    piece.mean, piece.std, piece.visits = (torch.tensor([x, x], dtype=torch.float64) for x in (0.5, 0.5, 1.0))
    assert call(piece, [[1.0] * 4], [0])[0] == pytest.approx([0.288675] * 4, abs=1e-6)
    piece.visits[1] = 3
    assert call(piece, [[1.0, 0, 0, 0]], [1])[0] == pytest.approx([1.199644, *[-0.588797] * 3], abs=2e-6)


@pytest.mark.reduction("dcpo-sas")
@given(st.lists(st.tuples(st.floats(-3, 3, allow_subnormal=False), st.integers(0, 3)), min_size=1, max_size=14))
def test_the_first_visit_is_grpo_without_eps(rows: list[tuple[float, int]]) -> None:
    rewards = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g in rows])
    got = smooth_standardisation()(rewards, groups, groups)
    want = group_norm(rewards, groups, eps=0.0).nan_to_num(0.0)
    spread = torch.tensor([float(rewards[groups == g].max() - rewards[groups == g].min()) for g in groups.tolist()])
    clear = spread > 1e-6  # below it, rounding of the mean is all there is
    torch.testing.assert_close(got[clear], want[clear], rtol=1e-6, atol=1e-9)


def test_a_group_of_equal_rewards_learns_once_its_prompt_has_had_others() -> None:
    piece = smooth_standardisation()
    assert call(piece, [[1.0, 1.0], [1.0, 0.0]], [0, 1])[0] == [0.0, 0.0]
    again = call(piece, [[1.0, 1.0], [1.0, 1.0]], [0, 1])
    assert again[0] == [0.0, 0.0] and min(again[1]) > 0


def test_rewards_that_are_all_one_odd_number_stay_worth_nothing() -> None:
    piece = smooth_standardisation()
    for _ in range(7):
        assert call(piece, [[0.1] * 7], [0])[0] == [0.0] * 7


def test_its_memory_survives_a_resume(tmp_path: Path) -> None:
    over = [*TINY, "task.train=2", "draw.prompts=2", "task.dense=true", "steps=2", "checkpoint.every=1"]
    start(resolve(method="dcpo-sas", overrides=over), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/state.pt", weights_only=True)
    state = saved["pieces"]["credit.baseline=smooth_standardisation"]
    assert state["visits"].tolist() == [2.0, 2.0]
    fresh = smooth_standardisation()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.mean, state["mean"]) and torch.equal(fresh.std, state["std"])
