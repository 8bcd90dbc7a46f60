from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.a_grae import a_grae as oracle

from coterie.credit import a_grae, group_norm
from coterie.metrics import Collector, collect


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


TWO = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.oracle("a-grae")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        n |= {name: n[name].astype(np.float32) for name in ("advantages", "rewards")}
        t = inputs.tensors(n)
        for settings in ({}, {"alpha": 0.3, "eps": 0.01}):
            want = oracle(n["advantages"], n["rewards"], n["groups"], **settings)
            got = a_grae(t["advantages"].to(dtype), t["rewards"].to(dtype), t["groups"], **settings)
            near(got, want, tolerance)


@pytest.mark.oracle("a-grae")
def test_numbers_of_the_source() -> None:
    rewards = R(1, 0, 0, 0, 1, 1, 1, 0)
    want = [0.749997, -0.499998, -0.499998, -0.499998, 0.53867, 0.53867, 0.53867, -3.232023]
    near(a_grae(group_norm(rewards, TWO, eps=1e-6), rewards, TWO), want, 2e-6)
    alone = group_norm(rewards[:4], TWO[:4], eps=1e-6)
    near(a_grae(alone, rewards[:4], TWO[:4]), [0.374999, -0.499998, -0.499998, -0.499998], 2e-6)


@pytest.mark.oracle("a-grae")
@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_the_bounds_change_nothing_for_binary_rewards(right: list[bool]) -> None:
    rewards = R(*map(float, right))
    a = group_norm(rewards, TWO, eps=1e-6)
    near(a_grae(a, rewards, TWO), oracle(a.tolist(), rewards.tolist(), TWO.tolist(), bounded=False), 1e-9)


@pytest.mark.oracle("a-grae")
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=9))
def test_every_group_counts_once_whatever_its_size(rows: list[tuple[bool, int]]) -> None:
    rewards, groups = R(*(float(r) for r, _ in rows)), torch.tensor([g for _, g in rows])
    a = group_norm(rewards, groups)
    near(a_grae(a, rewards, groups), oracle(a.tolist(), rewards.tolist(), groups.tolist()), 1e-9)


def test_groups_without_a_signal_stay_so_and_decisions_share_their_weight() -> None:
    rewards = R(1, 1, 1, 1, 0, 1, 0, 0)
    a = group_norm(rewards, TWO)
    flat = a_grae(a, rewards, TWO)
    assert (flat[:4] == 0).all() and (flat[4:] != 0).all()
    near(a_grae(a.unsqueeze(-1) * R(1, -2), rewards, TWO)[:, 0], flat)
    near(a_grae(a.unsqueeze(-1) * R(1, -2), rewards, TWO)[:, 1], a_grae(-2 * a, rewards, TWO))


def test_what_it_records() -> None:
    rewards = R(1, 0, 0, 0, 1, 1, 1, 0)
    with collect(seen := Collector()):
        a_grae(group_norm(rewards, TWO), rewards, TWO)
    means = seen.means()
    assert means["a_grae/mastery"] == 0.5
    assert means["a_grae/weight"] == pytest.approx(
        (0.25 * (2 + 2) + 0.25 * (1 / (1 - 0.75**0.5) + 0.75**-0.5)) / 2, rel=1e-4
    )


@pytest.mark.reduction("a-grae")
@given(st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda k: k[0] > k[1]))
def test_easy_prompts_first_and_hard_ones_later(right: tuple[int, int]) -> None:
    """Two prompts with `right` of 8 correct, among 300 that are all wrong, then all right: who weighs more turns."""
    groups = torch.arange(302).repeat_interleave(8)
    blame = -torch.ones(len(groups), dtype=torch.float64)
    for others in (0.0, 1.0):
        pair = torch.cat([torch.arange(8) < k for k in right]).double()
        rewards = torch.cat([pair, torch.full((2400,), others, dtype=torch.float64)])
        got = a_grae(blame, rewards, groups)
        easy, hard = -float(got[0]), -float(got[8])
        assert (easy > hard) == (others == 0.0)


@pytest.mark.reduction("a-grae")
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.floats(0.1, 1))
def test_from_alpha_on_praise_and_blame_are_weighted_alike(right: list[bool], alpha: float) -> None:
    rewards = R(*map(float, right))
    a = group_norm(rewards, TWO)
    full, damped = a_grae(a, rewards, TWO, alpha=1e-9), a_grae(a, rewards, TWO, alpha=alpha)
    mastery = float(rewards.mean())
    near(damped, torch.where(a > 0, full * min(1.0, mastery / alpha), full), 1e-12)
    near(a_grae(-a, rewards, TWO, alpha=1e-9), -full, 1e-12)
