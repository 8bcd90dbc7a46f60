from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.tempo import tempo as oracle

from coterie.credit import group_norm, prefix_tree


@pytest.mark.oracle("tempo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("alphabet", [1, 2, 50])
def test_against_the_oracle(kind: str, alphabet: int) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["tokens"] = np.random.default_rng(seed).integers(0, alphabet, n["mask"].shape)
        t = inputs.tensors(n)
        for settings in ({}, {"ddof": 1, "eps": 0.1}):
            got = prefix_tree(t["rewards"], t["groups"], t["tokens"], t["mask"], **settings)
            want = oracle(n["rewards"], n["groups"], n["tokens"], n["mask"], **settings)
            np.testing.assert_allclose(got.numpy(), np.array(want).reshape(got.shape), rtol=1e-9, atol=1e-10)


@pytest.mark.oracle("tempo")
def test_numbers_of_the_source() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 0]])
    mask = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    got = prefix_tree(rewards, torch.zeros(3, dtype=torch.long), tokens, mask)
    want = [[1.4142, 1.7678, 2.4749], [-0.7071, -0.3536, -1.7678], [-0.7071, -1.4142, 0.0]]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


lists = st.lists(
    st.tuples(st.floats(-2, 2), st.lists(st.integers(0, 2), min_size=4, max_size=4)), min_size=2, max_size=8
)


def table(rows: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([t for _, t in rows])
    rewards = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    return rewards, torch.zeros(len(rows), dtype=torch.long), tokens, torch.ones_like(tokens, dtype=torch.bool)


@pytest.mark.reduction("tempo")
@given(lists)
def test_beyond_the_first_token_it_is_grpo_where_no_two_rollouts_begin_alike(rows: Any) -> None:
    rewards, groups, tokens, mask = table(rows)
    tokens[:, 0] = torch.arange(len(rows))
    got, want = prefix_tree(rewards, groups, tokens, mask), group_norm(rewards, groups, ddof=0, eps=1e-6)
    torch.testing.assert_close(got[:, 1:], want.unsqueeze(-1).expand(-1, 3), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[:, 0], 2 * want, rtol=1e-9, atol=1e-9)


@pytest.mark.reduction("tempo")
@given(lists)
def test_the_extra_credit_of_a_rollout_sums_to_its_leaf_minus_the_mean(rows: Any) -> None:
    rewards, groups, tokens, mask = table(rows)
    extra = prefix_tree(rewards, groups, tokens, mask) - group_norm(rewards, groups, ddof=0, eps=1e-6).unsqueeze(-1)
    for i in range(len(rows)):
        same = (tokens == tokens[i]).all(-1)
        leaf = (rewards[same].mean() - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
        if float(rewards.max()) != float(rewards.min()):
            assert float(extra[i].sum()) == pytest.approx(float(leaf), abs=1e-8)
