from __future__ import annotations

from typing import Any

import pytest
import torch
from credit import agents
from hypothesis import given
from oracles import agents as oracle
from oracles import inputs

from coterie.credit import episode_norm, group_norm, state_norm
from coterie.metrics import Collector, collect

EPISODE = ("rewards", "groups", "turn", "mask")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"scale": "none"},
    {"over": "episodes", "lone": "zero", "ddof": 0, "eps": 0.1},
]


@pytest.mark.oracle("gigpo", "agent-flow")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(episode_norm(*(t[c] for c in EPISODE), **settings), oracle.episodes(n, **settings))
        for more in ({}, {"gamma": 0.5, "omega": 2.0}):
            got = state_norm(*(t[c] for c in agents.COLUMNS), **settings, **more)
            agents.near(got, oracle.gigpo(n, **settings, **more))


@pytest.mark.oracle("gigpo")
def test_numbers_of_the_source() -> None:
    t = agents.table([[0, 1], [0, 0, 0]], [[0, 1], [0, 2, 1]])
    agents.near(state_norm(**t, scale="none"), [[1.075, 1.1, 0], [-0.875, -0.4, -0.9]])
    each = state_norm(**t, scale="none", over="episodes", omega=0.0)
    agents.near(each, [[0.5, 0.5, 0], [-0.5, -0.5, -0.5]])


@pytest.mark.oracle("agent-flow")
def test_numbers_of_agent_flow() -> None:
    t = agents.table([[1.0], [0.0, 0.0, 0.0]])
    columns = [t[c] for c in EPISODE]
    agents.near(episode_norm(*columns), [1.5, -0.5], 1e-5)
    agents.near(episode_norm(*columns, over="episodes"), [0.7071, -0.7071], 1e-4)


@pytest.mark.reduction("gigpo")
@given(agents.lists)
def test_where_no_state_comes_twice_it_is_the_episode_alone(rows: list[list[float]]) -> None:
    t = agents.table(rows)
    want = episode_norm(*(t[c] for c in EPISODE)).unsqueeze(-1)
    agents.near(state_norm(**t), torch.where(t["mask"], want, 0.0).numpy())


@pytest.mark.reduction("gigpo")
@given(agents.lists)
def test_the_second_part_sums_to_nothing_in_each_state(rows: list[list[float]]) -> None:
    t = agents.table(rows, [[u % 2 for u in range(len(r))] for r in rows])
    step = state_norm(**t) - state_norm(**t, omega=0.0)
    for state in (0, 1):
        assert step[t["state_key"] == state].sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.reduction("gigpo", "agent-flow")
@given(agents.lists)
def test_one_turn_an_episode_is_grpo(rows: list[list[float]]) -> None:
    t = agents.table([r[:1] for r in rows])
    want = group_norm(t["rewards"], t["groups"], eps=1e-6)
    agents.near(episode_norm(*(t[c] for c in EPISODE)), want.numpy())
    agents.near(state_norm(**t, omega=0.0)[:, 0], want.numpy())


@pytest.mark.reduction("agent-flow")
@given(agents.lists)
def test_episodes_that_count_once_are_grpo(rows: list[list[float]]) -> None:
    t = agents.table(rows)
    want = group_norm(t["rewards"], t["groups"], eps=1e-6)
    agents.near(episode_norm(*(t[c] for c in EPISODE), over="episodes"), want.numpy())


def test_coming_back_to_a_state_costs() -> None:
    """Two episodes of equal reward, one with a loop: its second visit to the state is worth what the other's first is,
    the first visit less."""
    t = agents.table([[0, 1], [0, 0, 0, 1]], [[0, 1], [0, 2, 0, 1]])
    got = state_norm(**t, over="episodes")
    assert got[1, 0] < 0 < got[1, 2] and got[1, 2] == got[0, 0]


def test_what_it_records() -> None:
    t = agents.table([[0, 1], [0, 0, 0]], [[0, 1], [0, 2, 1]])
    with collect(seen := Collector()):
        state_norm(**t)
    assert seen.means() == {"state/shared_share": pytest.approx(0.8), "state/turns_of_state": pytest.approx(1.8)}
