from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.stratified import stratified as oracle

from coterie.credit import group_norm, stratified_norm
from coterie.errors import RewardError


@pytest.mark.oracle("stratified")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        strata = np.random.default_rng(seed).integers(0, 4, len(n["rewards"])).astype(float)
        t = inputs.tensors(n)
        for settings in ({}, {"alpha": 0.3, "cap": 1}, {"ddof": 0, "eps": 0.1}):
            want = oracle(n["rewards"], n["groups"], strata, **settings)
            parts = {"calls": torch.from_numpy(strata)}
            got = stratified_norm(t["rewards"], t["groups"], parts, strata="calls", **settings)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("stratified")
def test_numbers_of_the_source() -> None:
    rewards, groups = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    parts = {"tool_calls": torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)}
    got = stratified_norm(rewards, groups, parts, alpha=0.5)
    np.testing.assert_allclose(got.numpy(), [1.103551, -0.603552, -0.25, -0.25], atol=1e-6)


@pytest.mark.reduction("stratified")
@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=14))
def test_without_strata_or_with_alpha_0_it_is_grpo(rows: list[tuple[float, int, int]]) -> None:
    rewards = torch.tensor([r for r, _, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g, _ in rows])
    strata = {"tool_calls": torch.tensor([float(s) for _, _, s in rows], dtype=torch.float64)}
    want = group_norm(rewards, groups, eps=1e-6)
    torch.testing.assert_close(stratified_norm(rewards, groups, strata, alpha=0.0), want)
    one = {"tool_calls": torch.zeros_like(rewards)}
    torch.testing.assert_close(stratified_norm(rewards, groups, one), want)


def test_a_component_nobody_gives_is_named() -> None:
    with pytest.raises(RewardError, match="'tool_calls'"):
        stratified_norm(torch.zeros(2), torch.zeros(2, dtype=torch.long), {"exact": torch.zeros(2)})
