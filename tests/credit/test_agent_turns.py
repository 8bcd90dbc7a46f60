"""SALT, MAPO and EAPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from credit import agents
from hypothesis import given
from oracles import agents as oracle
from oracles import inputs

from coterie.credit import decayed_turn_norm, episode_norm, group_norm, merged_steps, turn_norm
from coterie.metrics import Collector, collect

EPISODE = ("rewards", "groups", "turn", "mask")
MERGE = ("groups", "tokens", "state_key", "turn", "mask")
TURN = ("step_rewards", "groups", "turn", "mask")


def pick(t: dict[str, torch.Tensor], names: tuple[str, ...]) -> list[torch.Tensor]:
    return [t[n] for n in names]


@pytest.mark.oracle("salt")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"history": 1}, {"history": 2, "actions": False}])
@pytest.mark.parametrize("alphabet", [1, 2])
def test_salt_against_the_oracle(kind: str, settings: dict[str, Any], alphabet: int) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        n["tokens"] = np.random.default_rng(seed).integers(0, alphabet, n["mask"].shape)
        t["tokens"] = torch.from_numpy(n["tokens"])
        every = n["advantages"][:, None] + 0 * n["mask"]
        agents.near(merged_steps(t["advantages"], *pick(t, MERGE), **settings), oracle.salt(n, every, **settings))
        every = every + n["logp_old"]
        agents.near(
            merged_steps(torch.from_numpy(every), *pick(t, MERGE), **settings), oracle.salt(n, every, **settings)
        )


@pytest.mark.oracle("salt")
def test_salt_numbers_of_the_source() -> None:
    t = agents.table([[0, 1], [0, 0], [0, 0]], [[0, 1], [0, 1], [0, 2]])
    t["tokens"] = torch.tensor([[5, 6], [5, 7], [6, 6]])
    advantages = group_norm(t["rewards"], t["groups"], eps=0.0)
    want = [[0.2887, 1.1547], [0.2887, -0.5773], [-0.5773, -0.5773]]
    agents.near(merged_steps(advantages, *pick(t, MERGE)), want, 1e-4)


@pytest.mark.reduction("salt")
@given(agents.lists)
def test_salt_without_shared_steps_changes_nothing_and_keeps_the_sum_with_them(rows: list[list[float]]) -> None:
    t = agents.table(rows)
    t["tokens"] = torch.ones_like(t["turn"])
    advantages = group_norm(t["rewards"], t["groups"])
    plain = torch.where(t["mask"], advantages.unsqueeze(-1), 0.0)
    assert torch.equal(merged_steps(advantages, *pick(t, MERGE)), plain)
    t["state_key"] = torch.where(t["mask"], t["turn"] % 2, -1)
    merged = merged_steps(advantages, *pick(t, MERGE))
    assert merged.sum().item() == pytest.approx(plain.sum().item(), abs=1e-9)


@pytest.mark.oracle("mapo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"alpha": 0.9, "gamma": 0.5, "ddof": 1, "eps": 0.1}])
def test_mapo_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(turn_norm(*pick(t, TURN), **settings), oracle.mapo(n, **settings))


@pytest.mark.oracle("mapo")
def test_mapo_numbers_of_the_source() -> None:
    t = agents.table([[1, 0], [0, 1]])
    agents.near(turn_norm(*pick(t, TURN)), [[0.2887, -1.366], [0.2887, 0.7887]], 1e-3)


@pytest.mark.reduction("mapo")
@given(agents.lists)
def test_mapo_of_one_turn_is_grpo(rows: list[list[float]]) -> None:
    t = agents.table([r[:1] for r in rows])
    want = group_norm(t["rewards"], t["groups"], ddof=0, eps=1e-6)
    agents.near(turn_norm(*pick(t, TURN), alpha=1.0)[:, 0], want.numpy())


@pytest.mark.oracle("iter-research")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"gamma": 0.5, "ddof": 1, "eps": 0.1}])
def test_eapo_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(decayed_turn_norm(*pick(t, EPISODE), **settings), oracle.eapo(n, **settings))


@pytest.mark.oracle("iter-research")
def test_eapo_numbers_of_the_source() -> None:
    t = agents.table([[0, 1], [0]])
    agents.near(decayed_turn_norm(*pick(t, EPISODE), gamma=0.9), [[0.593, 0.8154], [-1.4084, 0.0]], 1e-3)


@pytest.mark.reduction("iter-research")
@given(agents.lists)
def test_eapo_without_decay_is_one_outcome_for_every_turn(rows: list[list[float]]) -> None:
    t = agents.table(rows)
    want = episode_norm(*pick(t, EPISODE), ddof=0, lone="zero").unsqueeze(-1)
    agents.near(decayed_turn_norm(*pick(t, EPISODE), gamma=1.0), torch.where(t["mask"], want, 0.0).numpy(), 1e-7)


def test_what_they_record() -> None:
    t = agents.table([[0, 1], [0, 0, 1]], [[0, 1], [0, 2, 1]])
    t["tokens"] = torch.ones_like(t["turn"])
    with collect(seen := Collector()):
        merged_steps(t["rewards"], *pick(t, MERGE))
        turn_norm(*pick(t, TURN))
        decayed_turn_norm(*pick(t, EPISODE), gamma=0.5)
    assert seen.means() == {
        "salt/shared_share": pytest.approx(0.4),
        "turn/return": 1.0,
        "turn/alone_share": pytest.approx(0.2),
        "eapo/decay": pytest.approx(0.65),
    }
