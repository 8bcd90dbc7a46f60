"""Advantage Alignment and M-GRPO."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from credit import agents
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import several_agents as oracle

from coterie.credit import aligned_advantage, call_norm, group_norm, leave_one_out
from coterie.metrics import Collector, collect
from coterie.selection import align_calls

ALIGN = ("step_rewards", "other_rewards", "groups", "turn", "mask")


def game(mine: list[list[float]], theirs: list[list[float]]) -> list[torch.Tensor]:
    t = agents.table(mine)
    t["other_rewards"] = agents.table(theirs)["step_rewards"]
    return [t[n] for n in ALIGN]


@pytest.mark.oracle("ad-align")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"gamma": 0.5, "beta": 0.7, "now": True}, {"gamma": 1.0}])
def test_alignment_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(aligned_advantage(*(t[c] for c in ALIGN), **settings), oracle.ad_align(n, **settings))


@pytest.mark.oracle("ad-align")
def test_alignment_numbers_of_the_source() -> None:
    t = game([[1, 0], [0, 0]], [[0, 1], [0, 0]])
    with collect(seen := Collector()):
        agents.near(aligned_advantage(*t, gamma=0.5, beta=2.0), [[1, 0.5], [-1, 0.5]])
    agents.near(aligned_advantage(*t, gamma=0.5, beta=2.0, now=True), [[2, 1], [0, 1]])
    assert seen.means() == {"align/own": 0.5, "align/aligned": 0.25}


@pytest.mark.reduction("ad-align")
@given(agents.lists)
def test_everyone_for_himself_is_rloo_of_returns(rows: list[list[float]]) -> None:
    """beta=0, and with one turn the return is the reward."""
    t = game(rows, [[9.0] * len(r) for r in rows])
    got = aligned_advantage(*t, beta=0.0)
    first = game([r[:1] for r in rows], [[1.0]] * len(rows))
    agents.near(aligned_advantage(*first, beta=0.0)[:, 0], leave_one_out(first[0][:, 0], first[2]).numpy())
    agents.near(aligned_advantage(*t, beta=3.0, gamma=0.0), aligned_advantage(*t, beta=0.0, gamma=0.0).numpy())
    assert got.shape == t[4].shape


def test_who_was_treated_well_is_credited_for_treating_well() -> None:
    """Two games that differ in the first turn alone: what I did for the other later counts where I did well before."""
    mine, theirs = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    good, bad, _ = aligned_advantage(*game(mine, theirs), gamma=0.9)[:, 1].tolist()
    assert good > 0 > bad


CALLS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.floats(-3, 3, allow_subnormal=False)), min_size=2, max_size=12
)


def called(rows: list[tuple[int, int, float]]) -> dict[str, np.ndarray]:
    group, episode, reward = zip(*rows, strict=True)
    return {"groups": np.array(group), "episode": np.array(episode), "rewards": np.array(reward, dtype=np.float64)}


@pytest.mark.oracle("m-grpo")
@given(CALLS)
def test_calls_against_the_oracle(rows: list[tuple[int, int, float]]) -> None:
    n = called(rows)
    t = {name: torch.from_numpy(value) for name, value in n.items()}
    agents.near(call_norm(t["rewards"], t["groups"], t["episode"], eps=1e-3), oracle.m_grpo(n, eps=1e-3), 1e-6)
    weights = align_calls(t["groups"], t["episode"], torch.ones_like(t["rewards"]))
    agents.near(weights, oracle.m_grpo_weights(n))


@pytest.mark.oracle("m-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_calls_of_tables_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        agents.near(call_norm(t["rewards"], t["groups"], t["episode"]), oracle.m_grpo(n), 1e-7)
        got = align_calls(t["groups"], t["episode"], t["weights"])
        agents.near(got, oracle.m_grpo_weights(n) * n["weights"])
        wide = align_calls(t["groups"], t["episode"], t["logp"])
        agents.near(wide, oracle.m_grpo_weights(n)[:, None] * n["logp"])


@pytest.mark.oracle("m-grpo")
def test_calls_numbers_of_the_source() -> None:
    rewards, episode = torch.tensor([0.2, 0.9, 0.1], dtype=torch.float64), torch.tensor([0, 0, 1])
    with collect(seen := Collector()):
        got = call_norm(rewards, torch.zeros(3, dtype=torch.long), episode)
    agents.near(got, [-0.3737, 1.7191, -0.6727], 1e-4)
    assert seen.means() == {"calls/an_episode": pytest.approx(5 / 3)}
    weights = align_calls(torch.zeros(3, dtype=torch.long), episode, torch.ones(3, dtype=torch.float64))
    agents.near(weights, [0.75, 0.75, 1.5])


@pytest.mark.reduction("m-grpo")
@given(st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=2, max_size=8))
def test_one_call_an_episode_is_grpo(values: list[float]) -> None:
    rewards, groups = torch.tensor(values, dtype=torch.float64), torch.zeros(len(values), dtype=torch.long)
    episode = torch.arange(len(values))
    agents.near(
        call_norm(rewards, groups, episode, eps=1e-3), group_norm(rewards, groups, ddof=0, eps=1e-3).numpy(), 1e-6
    )
    assert torch.equal(align_calls(groups, episode, torch.ones_like(rewards)), torch.ones_like(rewards))


@pytest.mark.reduction("m-grpo")
@given(CALLS)
def test_every_episode_weighs_the_same(rows: list[tuple[int, int, float]]) -> None:
    n = called(rows)
    groups, episode = torch.from_numpy(n["groups"]), torch.from_numpy(n["episode"])
    weights = align_calls(groups, episode, torch.ones(len(rows), dtype=torch.float64))
    each = torch.zeros(12, dtype=torch.float64).index_add(0, groups * 4 + episode, weights)
    assert np.allclose(each[each > 0], each.max()) and weights.mean().item() == pytest.approx(1.0)
