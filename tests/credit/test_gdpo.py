"""GDPO, and LightningRL's settings of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.gdpo import gdpo as oracle

from coterie.credit import decoupled_norm, group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect

FOUR, TWO = torch.zeros(4, dtype=torch.long), torch.tensor([5, 5, 5, 5, 2, 2, 2, 2])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"whiten": False},
    {"ddof": 0, "eps": 1e-8},
    {"gates": {"format": "exact"}, "gate_at": 0.3},
    {"gates": {"format": "exact", "exact": "format"}, "gate_at": 0.0, "eps": 0.1},
]


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("gdpo", "lightning-rl")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        parts = {k: v.astype(np.float32).astype(np.float64) for k, v in n["components"].items()}
        if seed:  # some functions gave nothing for some rollouts
            missing = np.random.default_rng(seed).random((2, len(n["groups"]))) < 0.3
            parts = {k: np.where(m, np.nan, v) for (k, v), m in zip(parts.items(), missing, strict=True)}
        t = {k: torch.from_numpy(v).to(dtype) for k, v in parts.items()}
        for settings in SETTINGS:
            want = oracle(parts, n["reward_weights"], n["groups"].tolist(), **settings)
            got = decoupled_norm(t, n["reward_weights"], torch.from_numpy(n["groups"]), **settings)
            assert got.dtype == dtype
            near(got, want, tolerance)


@pytest.mark.oracle("gdpo")
def test_numbers_of_the_source() -> None:
    ones = {"a": 1.0, "b": 1.0}
    one = {"a": R(1, 1, 0, 0), "b": R(1, 0, 1, 0)}
    near(decoupled_norm(one, ones, FOUR), [1.224658, 0, 0, -1.224658], 1e-6)
    two = {"a": R(1, 0, 0, 0, 1, 0, 1, 1), "b": R(1, 1, 0, 0, 0, 0, 1, 1)}
    got = decoupled_norm(two, ones, TWO)
    near(got[:4], [1.438751, 0.222588, -0.830669, -0.830669], 1e-6)
    summed = group_norm(two["a"] + two["b"], TWO)
    near(summed[:4], [1.305446, 0.261089, -0.783268, -0.783268], 1e-6)


@pytest.mark.oracle("lightning-rl")
def test_numbers_of_lightning_rl() -> None:
    """A wrong and fast rollout is above a right and slow one, as the two z-scores weigh the same."""
    parts, ones = {"correct": R(1, 1, 0, 0), "speed": R(2, 4, 6, 8)}, {"correct": 1.0, "speed": 1.0}
    z = decoupled_norm(parts, ones, FOUR, ddof=0, eps=1e-8, whiten=False)
    near(z, [-0.341641, 0.552786, -0.552786, 0.341641], 1e-6)
    near(decoupled_norm(parts, ones, FOUR, ddof=0, eps=1e-8), [-0.643886, 1.04183, -1.04183, 0.643886], 1e-5)


def test_what_is_equal_throughout_a_group_says_nothing_there_and_elsewhere_is_heard() -> None:
    parts = {"a": R(0.1, 0.1, 0.1, 0.1, 1, 0, 0, 0), "b": R(1, 0, 0, 1, 0.3, 0.3, 0.3, 0.3)}
    got = decoupled_norm(parts, {"a": 1.0, "b": 1.0}, TWO, whiten=False)
    assert torch.equal(got[:4], group_norm(parts["b"], TWO)[:4])
    assert torch.equal(got[4:], group_norm(parts["a"], TWO)[4:])
    dead = decoupled_norm({"a": parts["a"]}, {"a": 1.0}, TWO)
    assert (dead[:4] == 0).all() and (dead[4:] != 0).all()


def test_a_function_that_gave_nothing_is_left_out() -> None:
    nothing = math.nan
    parts = {"a": R(1, nothing, 0, nothing), "b": R(nothing, nothing, nothing, nothing)}
    got = decoupled_norm(parts, {"a": 1.0, "b": 1.0}, FOUR, whiten=False, eps=0.0)
    near(got, [2**-0.5, 0, -(2**-0.5), 0])


def test_a_gate_names_components_that_exist() -> None:
    parts, weights = {"correct": R(1, 0), "length": R(1, 1)}, {"correct": 1.0, "length": 1.0}
    for gates in ({"long": "correct"}, {"length": "corect"}):
        with pytest.raises(RewardError, match="which no reward function gives"):
            decoupled_norm(parts, weights, FOUR[:2], gates=gates)


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        decoupled_norm({"a": R(1, 1, 1, 1), "b": R(1, 0, math.nan, 1)}, {"a": 1.0, "b": 1.0}, FOUR)
    assert seen.means() == {"gdpo/silent_share": 5 / 8}


@pytest.mark.reduction("gdpo")
@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8), st.floats(0.1, 5))
def test_one_reward_is_grpo_over_the_scale_of_the_batch(rewards: list[float], weight: float) -> None:
    r = R(*rewards)
    grpo = weight * group_norm(r, TWO)
    near(decoupled_norm({"r": r}, {"r": weight}, TWO, whiten=False), grpo, 1e-9)
    near(decoupled_norm({"r": r}, {"r": weight}, TWO), grpo / (grpo.std() + 1e-4), 1e-9)


@pytest.mark.reduction("gdpo", "lightning-rl")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=8, max_size=8), st.floats(0.01, 100))
def test_the_scale_of_a_reward_does_not_matter(pairs: list[tuple[int, int]], scale: float) -> None:
    """GRPO on the sum hears the reward of larger spread; here each is heard by its weight."""
    a, b = (R(*map(float, column)) for column in zip(*pairs, strict=True))
    weights = {"a": 1.0, "b": 0.5}
    settings: dict[str, Any] = {"whiten": False, "ddof": 0, "eps": 1e-12}
    small = decoupled_norm({"a": a, "b": b}, weights, TWO, **settings)
    near(decoupled_norm({"a": a, "b": scale * b}, weights, TWO, **settings), small, 1e-8)


@pytest.mark.reduction("gdpo")
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-2, 2)), min_size=8, max_size=8))
def test_an_open_gate_changes_nothing_and_a_closed_one_silences(pairs: list[tuple[int, float]]) -> None:
    hard, easy = (R(*map(float, column)) for column in zip(*pairs, strict=True))
    parts, weights = {"hard": hard, "easy": easy}, {"hard": 1.0, "easy": 1.0}
    plain = decoupled_norm(parts, weights, TWO)
    assert torch.equal(decoupled_norm(parts, weights, TWO, gates={"easy": "hard"}, gate_at=0.0), plain)
    shut = decoupled_norm(parts, weights, TWO, gates={"easy": "hard"}, gate_at=2.0)
    assert torch.equal(shut, decoupled_norm({"hard": hard}, weights, TWO))
