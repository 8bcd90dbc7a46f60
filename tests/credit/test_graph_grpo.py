"""Graph-GRPO, and the task whose graphs it learns."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import graph_grpo as oracle
from oracles import inputs

from coterie.credit import edge_mean, group_norm
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.tasks.base import validate
from coterie.tasks.topology import right, topology


@pytest.mark.oracle("graph-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        chosen = n["matched"] & n["mask"]
        wide = n["advantages"][:, None] + 0 * n["mask"]
        got = edge_mean(t["advantages"], t["groups"], t["matched"], t["mask"])
        np.testing.assert_allclose(got.numpy(), oracle.edges(wide, n["groups"], chosen), atol=1e-12)
        got = edge_mean(t["logp"], t["groups"], t["matched"], t["mask"])
        np.testing.assert_allclose(got.numpy(), oracle.edges(n["logp"], n["groups"], chosen), atol=1e-12)


@pytest.mark.oracle("graph-grpo")
def test_numbers_of_the_source() -> None:
    graphs = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]]) == 1
    groups, mask = torch.zeros(4, dtype=torch.long), torch.ones_like(graphs)
    advantages = group_norm(torch.tensor([1.0, 0.0, 0.0, 1.0]), groups, ddof=0, eps=0.0)
    assert advantages.tolist() == [1, -1, -1, 1]
    with collect(seen := Collector()):
        got = edge_mean(advantages, groups, graphs, mask)
    worth = torch.tensor([1 / 3, -1.0, 1.0])
    torch.testing.assert_close(got, torch.where(graphs, worth, 0.0))
    assert seen.means() == {"edge/chosen_share": pytest.approx(0.5), "edge/abs_mean": pytest.approx(4 / 6)}


@pytest.mark.reduction("graph-grpo")
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6))
def test_where_an_edge_is_the_whole_graph_it_is_grpo(rewards: list[float]) -> None:
    """Every rollout of a group has an edge that no other has."""
    n = len(rewards)
    advantages = group_norm(torch.tensor(rewards, dtype=torch.float64), torch.zeros(n, dtype=torch.long))
    own = torch.eye(n, dtype=torch.bool)
    got = edge_mean(advantages, torch.zeros(n, dtype=torch.long), own, torch.ones_like(own))
    assert torch.equal(got, torch.diag(advantages))


@pytest.mark.reduction("graph-grpo")
@given(st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=2, max_size=6))
def test_an_edge_of_every_graph_is_worth_nothing(rewards: list[float]) -> None:
    n = len(rewards)
    groups = torch.zeros(n, dtype=torch.long)
    advantages = group_norm(torch.tensor(rewards, dtype=torch.float64), groups, eps=1e-3)
    every = torch.ones(n, 2, dtype=torch.bool)
    assert edge_mean(advantages, groups, every, every).abs().max().item() < 1e-9


def simulated(skills: str, edges: str, count: int) -> float:
    """The last voter's share of right answers in questions drawn by chance."""
    rng = random.Random(0)
    heard = dict(zip(itertools.combinations(range(len(skills)), 2), edges, strict=True))
    good = 0
    for _ in range(count):
        votes: list[int] = []
        for j, skill in enumerate(skills):
            guess = 1 if rng.random() < int(skill) / 10 else -1
            votes.append(guess)
            total = guess + sum(votes[i] for i in range(j) if heard[i, j] == "1")
            votes[j] = guess if total == 0 else (1 if total > 0 else -1)
        good += votes[-1] == 1
    return good / count


def test_the_task_says_how_often_the_last_one_is_right() -> None:
    task = topology(train=20, held_out=5)
    report = validate(task)
    assert report.ok and report.corrupted == report.rows
    for skills, edges in (("9555", "000000"), ("9586", "011001"), ("7777", "111111")):
        assert right(skills, edges) == pytest.approx(simulated(skills, edges, 20000), abs=0.015)
    assert right("9555", "000000") == pytest.approx(0.5)
    assert right("95", "1") == right("95", "0")  # a tie is voted as it was guessed
    assert right("9555", "00000") == right("9555", "00000x") == 0.0
    with pytest.raises(RecipeError, match="2 to 5 voters, got 9"):
        topology(voters=9)
