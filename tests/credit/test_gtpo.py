from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.gtpo import gtpo as oracle

from coterie.credit import conflict_tokens, group_norm

SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_entropy": 9.0, "count": "union"},
    {"boost": 3.0, "entropy_scale": 0.4, "max_entropy": 1.2},
]


@pytest.mark.oracle("gtpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, draw = inputs.table(kind, seed), np.random.default_rng(seed)
        n["tokens"] = draw.integers(0, 1 + seed, n["mask"].shape)
        n["entropy_old"] = draw.exponential(1.0, n["mask"].shape)
        t = inputs.tensors(n)
        wide = torch.from_numpy(draw.standard_normal(n["mask"].shape) * draw.integers(0, 2, n["mask"].shape))
        for a in (group_norm(t["rewards"], t["groups"], scale="none"), wide):
            got = conflict_tokens(a, t["tokens"], t["entropy_old"], t["groups"], t["mask"], **settings)
            want = oracle(a.numpy(), n["tokens"], n["entropy_old"], n["groups"], n["mask"], **settings)
            np.testing.assert_allclose(got.numpy(), np.array(want).reshape(got.shape), rtol=1e-9, atol=1e-12)


def example() -> tuple[torch.Tensor, ...]:
    tokens = torch.tensor([[1, 2, 3, 9], [1, 2, 5, 9], [1, 6, 9, 0]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    groups, entropy = torch.zeros(3, dtype=torch.long), torch.tensor([[0.2], [0.3], [0.9]], dtype=torch.float64)
    advantages = group_norm(torch.tensor([2.0, 0, 1], dtype=torch.float64), groups, scale="none")
    return advantages, tokens, entropy.expand(3, 4), groups, mask


@pytest.mark.oracle("gtpo")
def test_numbers_of_the_source() -> None:
    got = conflict_tokens(*example())
    np.testing.assert_allclose(got[0].numpy(), [0.98, 0.98, 0.49, 0.98])
    np.testing.assert_allclose(got[1].numpy(), [0, 0, -0.515, 0])
    assert not got[2].any()
    union = conflict_tokens(*example(), count="union")
    np.testing.assert_allclose(union[0].numpy(), got[0].numpy() * 2 / 3)


@pytest.mark.reduction("gtpo")
@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 1)), min_size=1, max_size=9))
def test_without_shared_tokens_or_an_entropy_rule_it_is_the_centred_reward(rows: list[tuple[float, int]]) -> None:
    rewards = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g in rows])
    tokens = torch.arange(3 * len(rows)).view(-1, 3)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    a = group_norm(rewards, groups, scale="none")
    entropy = torch.full(mask.shape, 50.0, dtype=torch.float64)
    got = conflict_tokens(a, tokens, entropy, groups, mask, entropy_scale=0.0, max_entropy=math.inf)
    assert torch.equal(got, a.unsqueeze(-1).expand(-1, 3))


@pytest.mark.reduction("gtpo")
def test_equal_rewards_leave_the_entropy_alone() -> None:
    _, tokens, entropy, groups, mask = example()
    got = conflict_tokens(torch.zeros(3, dtype=torch.float64), tokens, entropy, groups, mask)
    want = torch.tensor([-0.02, -0.03, 0.0], dtype=torch.float64).unsqueeze(-1).expand(3, 4)
    torch.testing.assert_close(got, torch.where(mask, want, 0.0))
