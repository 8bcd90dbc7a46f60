from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.tree_po import tree_po as oracle

from coterie.credit import subtree_norm, whitened_return

SETTINGS: list[dict[str, Any]] = [
    {"segment": 1},
    {"segment": 2, "weights": "size", "eps": 0.1},
    {"segment": 1, "skip_constant": True, "scale": "none"},
    {},
]


@pytest.mark.oracle("tree-po")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["tokens"] = np.random.default_rng(seed).integers(0, 1 + seed, n["mask"].shape)
        t = inputs.tensors(n)
        got = subtree_norm(t["rewards"], t["groups"], t["tokens"], t["mask"], **settings)
        want = oracle(n["rewards"], n["groups"], n["tokens"], n["mask"], **settings)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-10)


@pytest.mark.oracle("tree-po")
def test_numbers_of_the_source() -> None:
    rewards, groups = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    tokens = torch.tensor([[0, 5], [0, 6], [1, 5], [1, 6]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    by_size = subtree_norm(rewards, groups, tokens, mask, segment=1, weights="size", scale="none")
    np.testing.assert_allclose(by_size.numpy(), [1 / 3, -2 / 3, 1 / 6, 1 / 6])
    equal = subtree_norm(rewards, groups, tokens, mask, segment=1, scale="none")
    np.testing.assert_allclose(equal.numpy(), [0.375, -0.625, 0.125, 0.125])
    whitened = subtree_norm(rewards, groups, tokens, mask, segment=1)
    per_token = np.repeat([0.375, -0.625, 0.125, 0.125], 2)
    np.testing.assert_allclose(whitened.numpy(), [0.375, -0.625, 0.125, 0.125] / per_token.std(ddof=1), rtol=1e-6)


@pytest.mark.reduction("tree-po")
@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=10))
def test_a_flat_tree_is_reinforce_with_the_groups_baseline(rows: list[tuple[float, int, int]]) -> None:
    rewards = torch.tensor([r for r, _, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g, _ in rows])
    mask = torch.arange(3) < torch.tensor([[n] for _, _, n in rows])
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    got = subtree_norm(rewards, groups, tokens, mask, segment=4)
    want = whitened_return(torch.zeros(mask.shape, dtype=torch.float64), mask, groups, rewards, group_baseline=True)
    torch.testing.assert_close(torch.where(mask, got.unsqueeze(-1), 0.0), want, rtol=1e-7, atol=1e-7)


@pytest.mark.reduction("tree-po")
@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 1)), min_size=4, max_size=10))
def test_rollouts_of_a_subtree_are_centred_in_it(rows: list[tuple[float, int]]) -> None:
    """Without whitening every level adds up to nothing, so the whole does where all levels hold the same rollouts."""
    rewards, first = (torch.tensor([row[k] for row in rows]) for k in (0, 1))
    tokens = torch.stack([torch.zeros_like(first), torch.arange(len(rows))], 1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    got = subtree_norm(rewards.double(), torch.zeros_like(first), tokens, mask, segment=1, scale="none")
    assert float(got.sum()) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(got, rewards.double() - rewards.double().mean())
