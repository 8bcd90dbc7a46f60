from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import scaling_inter as oracle

from coterie.api import resume, start
from coterie.errors import RecipeError
from coterie.recipe import resolve
from coterie.rollout.strategies.growing_horizon import horizon

WORLD = [
    "task=guess-number", "model={init: {layers: 1, width: 16, heads: 2, context: 64}}", "threads=1", "draw.prompts=2",
    "rollout.group_size=2", "rollout.max_tokens=48", "log.rollouts_every=0", "evaluation={every: 0, prompts: 2}",
]  # fmt: skip


@pytest.mark.oracle("agent-gym-rl")
@given(st.integers(0, 1000), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 300))
def test_against_the_oracle(step: int, turns: list[int], every: int) -> None:
    assert horizon(step, turns, every) == oracle.horizon(step, turns, every)


@pytest.mark.oracle("agent-gym-rl")
def test_numbers_of_the_source() -> None:
    """There steps count from 1."""
    steps = [1, 100, 101, 200, 201, 900]
    assert [horizon(n - 1, [6, 13, 20], 100) for n in steps] == [6, 6, 13, 13, 20, 20]


@pytest.mark.reduction("agent-gym-rl")
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 300))
def test_one_number_is_a_fixed_horizon(step: int, turns: int, every: int) -> None:
    assert horizon(step, [turns], every) == turns


def rows(result: Any) -> list[dict[str, Any]]:
    return [r for r in result.metrics if "horizon/turns" in r]


def test_episodes_grow_and_a_resumed_run_is_where_it_would_have_been(tmp_path: Path) -> None:
    more = ["rollout.strategy={growing_horizon: {turns: [1, 2, 9], every: 2}}", "checkpoint.every=1"]
    start(resolve(method="gigpo", overrides=[*WORLD, *more, "steps=2"]), tmp_path / "run", quiet=True)
    got = rows(resume(tmp_path / "run", steps=6, quiet=True))
    assert [r["horizon/turns"] for r in got] == [1, 1, 2, 2, 4, 4]  # the world's own are 4
    assert all(r["episode/turns"] <= r["horizon/turns"] for r in got) and got[0]["episode/turns"] == 1


def test_turns_must_be_some(tmp_path: Path) -> None:
    recipe = resolve(overrides=[*WORLD, "rollout.strategy={growing_horizon: {turns: []}}", "steps=1"])
    with pytest.raises(RecipeError, match="needs turns and steps of 1 or more"):
        start(recipe, tmp_path / "run", quiet=True)
