from __future__ import annotations

from typing import Any

import pytest
import torch
from credit import agents
from hypothesis import given
from hypothesis import strategies as st
from oracles import agents as oracle
from oracles import inputs

from coterie.credit import history_norm, state_norm
from coterie.metrics import Collector, collect

COLUMNS = ("groups", "step_rewards", "state_key", "turn", "mask")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"history": 0, "scale": "none"},
    {"history": 5, "gamma": 0.5, "alpha": 0.0, "ddof": 1, "eps": 0.1},
    {"drop_ties": 1e-9},
]


def advantage(t: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    return history_norm(*(t[c] for c in COLUMNS), **settings)


@pytest.mark.oracle("hgpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(advantage(t, **settings), oracle.hgpo(n, **settings))


@pytest.mark.oracle("hgpo")
def test_numbers_of_the_source() -> None:
    t = agents.table([[0, 1], [0, 0], [0, 1]], [[0, 1], [0, 1], [2, 1]])
    agents.near(advantage(t, history=1), [[1, 0.8828], [-1, -1.1657], [0, 0.7071]], 1e-4)
    agents.near(advantage(t, history=0), [[1, 0.7071], [-1, -1.4142], [0, 0.7071]], 1e-4)


@pytest.mark.reduction("hgpo")
@given(agents.lists, st.floats(0, 1))
def test_without_history_it_is_the_second_part_of_gigpo(rows: list[list[float]], gamma: float) -> None:
    t = agents.table(rows, [[u % 2 for u in range(len(r))] for r in rows])
    step = state_norm(**t, gamma=gamma, ddof=0) - state_norm(**t, omega=0.0, ddof=0)
    agents.near(advantage(t, history=0, gamma=gamma, alpha=40.0), step.numpy(), 1e-6)


@pytest.mark.reduction("hgpo")
@given(agents.lists)
def test_one_path_for_all_makes_all_levels_agree(rows: list[list[float]]) -> None:
    """Where everybody was in the same states, the mean over levels is that of each of them."""
    t = agents.table(rows, [list(range(len(r))) for r in rows])
    agents.near(advantage(t, alpha=0.0, eps=1e-9), advantage(t, history=0, eps=1e-9).numpy(), 1e-6)


def test_a_tie_on_a_deep_level_dilutes_unless_it_is_dropped() -> None:
    t = agents.table([[0, 1], [0, 1], [0, 0]], [[0, 1], [0, 1], [2, 1]])
    kept, dropped = advantage(t), advantage(t, drop_ties=0.0)
    assert kept[0, 1] == pytest.approx(0.4 * float(dropped[0, 1]), rel=1e-5)
    assert kept[2, 1] == pytest.approx(float(dropped[2, 1]))


def test_what_it_records() -> None:
    t = agents.table([[0, 1], [0, 0], [0, 1]], [[0, 1], [0, 1], [2, 1]])
    with collect(seen := Collector()):
        advantage(t)
    assert seen.means() == {"history/levels": pytest.approx(7 / 6), "history/voted_share": pytest.approx(5 / 6)}
