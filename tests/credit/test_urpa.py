from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs, urpa

from coterie.credit import group_norm, interval_confidence
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import interval_consensus

FOUR = torch.zeros(4, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def intervals(n: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Some missing, some the wrong way round, some points, and a group that agrees."""
    rng = np.random.default_rng([seed, 4])
    start = rng.uniform(0, 1, len(n["groups"]))
    end = start + rng.choice([-0.1, 0.0, 0.3, 0.5], len(start))
    same = n["groups"] == n["groups"][-1]
    start[same], end[same] = 0.1, 0.1 if seed == 1 else 0.7
    start[::5] = np.nan
    return {"start": start, "end": end}


@pytest.mark.oracle("urpa")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        x = intervals(n, seed)
        t = inputs.tensors(n)
        parts = {k: torch.from_numpy(v) for k, v in x.items()}
        shaped = interval_consensus(t["rewards"], t["groups"], parts, weight=0.5)
        want = n["rewards"] + 0.5 * np.array(urpa.rewards(x["start"], x["end"], n["groups"]))
        np.testing.assert_allclose(shaped.numpy(), want, rtol=1e-9, atol=1e-12)
        for width in (1.0, 0.3):
            conf = np.array(urpa.confidence(x["start"], x["end"], n["groups"], width))
            wide = t["advantages"].unsqueeze(-1).expand(-1, 3)
            got = interval_confidence(t["advantages"], t["groups"], parts, width=width)
            np.testing.assert_allclose(got.numpy(), n["advantages"] * conf, rtol=1e-9)
            assert torch.equal(interval_confidence(wide, t["groups"], parts, width=width)[:, 2], got)


@pytest.mark.oracle("urpa")
def test_numbers_of_the_source() -> None:
    parts = {"start": R(0.2, 0.3, 0.1, 0.2), "end": R(0.6, 0.7, 0.5, 0.6)}
    rewards = interval_consensus(R(0, 0, 0, 0), FOUR, parts)
    both = interval_confidence(rewards, FOUR, parts)  # the reward as the paper weights it
    np.testing.assert_allclose(both.numpy(), [0.99005, 0.59403, 0.59403, 0.99005], atol=1e-5)


def test_names_of_the_components_and_what_is_not_there() -> None:
    parts = {"from": R(0, 0, math.nan, 5), "to": R(1, 1, 1, 4)}
    got = interval_consensus(R(0, 0, 0, 0), FOUR, parts, start="from", end="to")
    assert got.tolist() == [1, 1, 0, 0]
    for piece in (interval_consensus, interval_confidence):
        with pytest.raises(RewardError, match="'start', which no reward function gives"):
            piece(R(0, 0, 0, 0), FOUR, parts)


def test_what_they_record() -> None:
    parts = {"start": R(0, 0, math.nan, 0), "end": R(1, 1, 1, 1)}
    with collect(seen := Collector()):
        interval_confidence(interval_consensus(R(0, 0, 0, 0), FOUR, parts), FOUR, parts)
    assert seen.means() == {"interval/overlap": 1.0, "interval/named_share": 0.75, "interval/confidence": 1.0}


interval = st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2))


@pytest.mark.reduction("urpa")
@given(st.lists(interval, min_size=1, max_size=10), st.floats(-2, 2))
def test_groups_that_agree_are_grpo_on_the_other_rewards(rows: list[tuple[float, float, int]], shift: float) -> None:
    groups = torch.tensor([g for *_, g in rows])
    rewards = R(*(a for a, *_ in rows))
    same = {"start": groups + shift, "end": groups + shift + 0.5}
    agreed = interval_consensus(rewards, groups, same)
    torch.testing.assert_close(agreed, rewards + 1)
    a = group_norm(rewards, groups)
    torch.testing.assert_close(interval_confidence(a, groups, same), a)
    assert torch.equal(interval_consensus(rewards, groups, same, weight=0.0), rewards)
    low, high = R(*(min(a, b) for a, b, _ in rows)), R(*(max(a, b) for a, b, _ in rows))
    scattered = {"start": low, "end": high}
    overlap = interval_consensus(torch.zeros_like(rewards), groups, scattered)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    weaker = interval_confidence(a, groups, scattered)
    assert (weaker * a >= 0).all() and (weaker.abs() <= a.abs()).all()


def test_what_only_weights_the_reward_is_lost_in_the_group() -> None:
    """Why the confidence is a factor of the advantage."""
    rewards = R(0.4, 0.9, 0.1, 0.6)
    torch.testing.assert_close(group_norm(0.3 * rewards, FOUR, eps=0.0), group_norm(rewards, FOUR, eps=0.0))
