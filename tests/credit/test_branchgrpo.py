"""Depth-wise credit on a tree of denoising paths, and the pruning of depths: against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import branchgrpo as oracle
from oracles import inputs

from coterie.credit.depth_norm import depth_norm, owners
from coterie.credit.group_norm import group_norm
from coterie.selection.prune_depths import prune_depths

COLUMNS = ("rewards", "groups", "parent", "branch", "mask")


@pytest.mark.oracle("branchgrpo")
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_it_is_the_oracles(kind: str, ddof: int) -> None:
    for seed in range(3):
        table = inputs.table(kind, seed)
        t = inputs.tensors(table)
        got = depth_norm(*(t[c] for c in COLUMNS), ddof=ddof)
        want = oracle.depth_norm(*(table[c].tolist() for c in COLUMNS), ddof=ddof)
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.oracle("branchgrpo")
def test_the_worked_example() -> None:
    """A binary tree of depth 2, by nodes and by paths."""
    rewards, advantages = oracle.tree([-1, 0, 0, 1, 1, 2, 2], [1.0, 2.0, 4.0, 0.0])
    assert rewards == [1.75, 1.5, 2.0, 1.0, 2.0, 4.0, 0.0]
    expected = [0, -0.7071, 0.7071, -0.4392, 0.1464, 1.3175, -1.0247]
    np.testing.assert_allclose(advantages, expected, atol=5e-5)
    got = depth_norm(
        torch.tensor([1.0, 2.0, 4.0, 0.0]),
        torch.zeros(4, dtype=torch.long),
        torch.tensor([0, 0, 0, 2]),
        torch.tensor([-1, 1, 0, 1]),
        torch.ones(4, 2, dtype=torch.bool),
    )
    np.testing.assert_allclose(got[:, 0], [expected[1]] * 2 + [expected[2]] * 2, atol=5e-5)
    np.testing.assert_allclose(got[:, 1], expected[3:], atol=5e-5)


def test_forks_of_forks_are_followed_to_whoever_took_the_decision() -> None:
    parent, branch = torch.tensor([0, 0, 1, 2]), torch.tensor([-1, 1, 3, 4])
    assert owners(parent, branch, 5).tolist() == [[0] * 5, [0, 1, 1, 1, 1], [0, 1, 1, 2, 2], [0, 1, 1, 2, 3]]


@pytest.mark.reduction("branchgrpo")
@given(rewards=st.lists(st.floats(-3, 3), min_size=6, max_size=6), first=st.integers(0, 1))
def test_without_forks_it_is_the_groups_normalisation(rewards: list[float], first: int) -> None:
    """A star from the root, at every decision: as independent rollouts, or forked in the first step."""
    r, groups = torch.tensor(rewards, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    parent = torch.arange(6) if first else torch.tensor([0, 0, 0, 3, 3, 3])
    branch = torch.full((6,), -1) if first else torch.tensor([-1, 0, 0, -1, 0, 0])
    got = depth_norm(r, groups, parent, branch, torch.ones(6, 4, dtype=torch.bool))
    want = group_norm(r, groups, scale="std", ddof=1, eps=1e-8).unsqueeze(-1).expand(6, 4)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-6)


def test_rounding_of_equal_nodes_is_no_signal() -> None:
    """The same rewards below two nodes, in another order, in float32."""
    r = torch.tensor([0.1, 0.7, 0.3, 0.9, 0.9, 0.3, 0.7, 0.1])
    parent, branch = torch.tensor([0, 0, 0, 0, 0, 4, 4, 4]), torch.tensor([-1, 1, 1, 1, 0, 1, 1, 1])
    got = depth_norm(r, torch.zeros(8, dtype=torch.long), parent, branch, torch.ones(8, 2, dtype=torch.bool))
    assert got.dtype == torch.float32 and float(got[:, 0].abs().max()) < 1e-6 and float(got[:, 1].abs().max()) > 1


@pytest.mark.oracle("branchgrpo")
@given(step=st.integers(0, 900), first=st.integers(0, 12), size=st.integers(1, 5), every=st.integers(1, 40))
def test_where_depths_are_pruned(step: int, first: int, size: int, every: int) -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 3] = False
    got = prune_depths(mask, torch.tensor([1.0, 0.5]), step, first=first, size=size, every=every, lowest=4)
    for row, weight in enumerate((1.0, 0.5)):
        gone = oracle.pruned(step, first, size, every, 4)
        want = [0.0 if t in gone or not mask[row, t] else weight for t in range(12)]
        assert got[row].tolist() == want


def test_the_worked_example_of_pruning() -> None:
    """Children of depth 15 to 18, that is steps 14 to 17, are 13 to 16 in iteration 65."""
    assert oracle.pruned(65, 14, 4, 30, 9) == [12, 13, 14, 15]
