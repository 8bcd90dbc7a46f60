"""Granular-GRPO's credit: against the oracle, the worked example, and plain group normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import granular_grpo as oracle

from coterie.credit.granular_norm import granular_norm
from coterie.credit.group_norm import group_norm


def table(rewards: np.ndarray) -> tuple[torch.Tensor, ...]:
    """rewards [prompts, steps, members, granularities] as the strategy lays them out."""
    _, steps, members, ends = rewards.shape
    rows = np.arange(rewards.size).reshape(rewards.shape)
    place = np.broadcast_to(np.arange(steps)[:, None, None], rewards.shape).ravel()
    parent = np.broadcast_to(rows[..., :1], rewards.shape).ravel().copy()
    groups = rows.ravel() // (steps * members * ends)
    columns = rewards.ravel(), groups, parent, np.eye(steps + 1, dtype=bool)[place]
    return tuple(map(torch.from_numpy, columns))


@pytest.mark.oracle("granular-grpo")
@pytest.mark.parametrize("kind", ["random", "binary", "equal", "one"])
def test_it_is_the_oracles(kind: str) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.standard_normal((2, 3, 1 if kind == "one" else 5, 2))
    rewards = (
        (rewards > 0).astype(float) if kind == "binary" else np.full_like(rewards, 0.1) if kind == "equal" else rewards
    )
    got = granular_norm(*table(rewards)).numpy().reshape(rewards.shape)
    for p, k in np.ndindex(2, 3):
        want = oracle.advantages(rewards[p, k].T.tolist())
        np.testing.assert_allclose(got[p, k], np.stack([want, want], 1), rtol=1e-9, atol=1e-12)
    assert kind not in ("equal", "one") or not got.any()


@pytest.mark.oracle("granular-grpo")
def test_the_worked_example() -> None:
    rewards = np.array([[1, 0, 0.5, 0.5], [0.8, 0.2, 0.9, 0.1]]).T[None, None]
    got = granular_norm(*table(rewards))
    np.testing.assert_allclose(got[::2], [1.9596, -1.9596, 0.9798, -0.9798], atol=5e-5)
    torch.testing.assert_close(got[::2], got[1::2])


@pytest.mark.reduction("granular-grpo")
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_with_one_way_to_the_end_and_one_step_it_is_group_normalisation(given_rewards: list[float]) -> None:
    rewards = np.array(given_rewards).reshape(2, 1, 3, 1)
    r, groups, parent, mask = table(rewards)
    want = group_norm(r, groups, scale="std", ddof=1, eps=1e-8)
    torch.testing.assert_close(granular_norm(r, groups, parent, mask), want, rtol=1e-9, atol=1e-9)
