"""UniRL: what was understood rewards what was generated, and what fits is what understanding learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import unified as oracle

from coterie.credit import group_norm, side_norm
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import mutual_reward
from coterie.selection import answerable

NAN = float("nan")
VALUES = st.sampled_from([0.0, 0.5, 1.0, NAN])
ROWS = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), VALUES, VALUES, st.floats(-2, 2)), min_size=1, max_size=10)
NAMED = {"side": "format", "understood": "exact"}


def made(rows: list[tuple[float, float, float, float]]) -> dict[str, np.ndarray]:
    draws, fits, right, rewards = (np.array(column) for column in zip(*rows, strict=True))
    return {"rewards": rewards, "components": {"draws": draws, "picture": fits, "answer": right}}  # type: ignore[dict-item]


def near(got: torch.Tensor, want: np.ndarray) -> None:
    assert got.numpy() == pytest.approx(np.asarray(want), rel=1e-9, abs=1e-9)


@pytest.mark.oracle("unirl")
@given(ROWS, st.sampled_from([{}, {"weight": 0.3, "at": 0.5}, {"fits": None}]))
def test_rewards_and_what_stays_against_the_oracle(rows: list, settings: dict) -> None:
    n = made(rows)
    t = inputs.tensors(n)
    want = oracle.mutual(n, "draws", "answer", **{"fits": "picture", **settings})
    near(mutual_reward(t["rewards"], t["components"], **settings), want)
    at = settings.get("at", 1.0)
    near(answerable(t["rewards"], t["components"], at=at), oracle.keeps(n, "draws", "picture", at))


@pytest.mark.oracle("unirl")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_tables_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        for fits in (None, "exact"):
            got = mutual_reward(t["rewards"], t["components"], fits=fits, at=0.2, **NAMED)
            near(got, oracle.mutual(n, "format", "exact", fits, 0.2))
        kept = answerable(t["rewards"], t["components"], side="format", fits="exact", at=0.2)
        near(kept, oracle.keeps(n, "format", "exact", 0.2))


@pytest.mark.oracle("unirl")
def test_the_numbers_of_our_notes() -> None:
    """Pictures [1,1,0,0], answers [1,0,1,0]: drawings earn [2,1,0,0], and of the answers the first two stay."""
    fits, right = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    components = {
        "draws": torch.tensor([1.0] * 4 + [0.0] * 4), "picture": fits.repeat(2), "answer": right.repeat(2)
    }  # fmt: skip
    own = torch.cat([fits, right])
    with collect(seen := Collector()):
        rewards = mutual_reward(own, components)
        kept = answerable(own, components) > 0
    assert rewards.tolist() == [2.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert kept.tolist() == [True] * 6 + [False] * 2
    assert rewards[kept][4:].tolist() == [1.0, 0.0]
    assert seen.means() == {"mutual/fit_share": 0.5, "mutual/understood": 0.5, "answerable/share": 0.5}
    groups, episode = torch.tensor([0] * 4 + [1] * 4), torch.arange(4).repeat(2)
    advantages = side_norm(rewards[kept], groups[kept], episode[kept], ddof=0, eps=1e-12)
    assert advantages[4:].tolist() == pytest.approx([1.0, -1.0])  # among the answers that stay
    assert advantages[:4].tolist() == pytest.approx(
        [1.25 / 0.6875**0.5, 0.25 / 0.6875**0.5, *[-0.75 / 0.6875**0.5] * 2]
    )


@pytest.mark.reduction("unirl")
@given(ROWS)
def test_with_weight_nought_each_side_is_grpo(rows: list) -> None:
    t = inputs.tensors(made(rows))
    rewards = mutual_reward(t["rewards"], t["components"], weight=0.0)
    assert torch.equal(rewards, t["rewards"])
    sides = t["components"]["draws"].long()
    near(side_norm(rewards, sides, torch.arange(len(rows))), group_norm(t["rewards"], sides).numpy())
    nobody_fails = {**t["components"], "picture": torch.ones(len(rows))}
    assert bool(answerable(t["rewards"], nobody_fails).all())


def test_answers_never_touch_their_own_reward() -> None:
    """Only what was generated is paid for being understood."""
    components = {"draws": torch.zeros(3), "picture": torch.ones(3), "answer": torch.ones(3)}
    assert mutual_reward(torch.tensor([0.0, 1.0, 0.5]), components).tolist() == [0.0, 1.0, 0.5]
