"""Pref-GRPO and PaCo-GRPO on samples that are arrays: rewards, advantages and trained steps, against the oracles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from oracles import paco_grpo, pref_grpo

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.loop import credit, select
from coterie.recipe import resolve
from coterie.rollouts import Rollouts
from tests.e2e.conftest import DENOISES, TINY
from tests.e2e.rewards import nearer

JUDGE = f"rewards.pairwise.judge={Path(__file__).parents[1] / 'e2e/rewards.py'}:nearer"


def batch_of(method: str, *overrides: str) -> Rollouts:
    run = build(resolve(method=method, overrides=[*TINY, *DENOISES, "rollout.group_size=6", *overrides]))
    batch = collect(run, 0, Clock())
    assert batch is not None
    batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    run.rewards.close()
    return batch


@pytest.mark.oracle("pref-grpo-flow")
def test_win_rates_of_arrays_are_the_oracles() -> None:
    batch = batch_of("pref-grpo-flow", JUDGE)
    for g, prompt in enumerate(batch.prompts):
        rows = (batch["groups"] == g).nonzero().squeeze(-1).tolist()
        points = [batch.texts[i].tolist() for i in rows]

        def judge(i: int, j: int, points: list = points, target: list = prompt.row["target"]) -> tuple[float, float]:
            return nearer([None], [points[i]], [points[j]], [target])[0]

        rates = pref_grpo.win_rates(judge, len(rows))
        np.testing.assert_allclose(batch["rewards"][rows], rates, rtol=1e-5)
        np.testing.assert_allclose(batch["advantages"][rows], pref_grpo.advantages(rates), rtol=1e-4, atol=1e-5)
    assert batch["weights"].tolist() == [[1.0, 1.0, 1.0, 0.0]] * 24


@pytest.mark.reduction("pref-grpo-flow")
def test_of_two_one_wins() -> None:
    batch = batch_of("pref-grpo-flow", JUDGE, "rollout.group_size=2")
    for g in range(4):
        pair = sorted(batch["rewards"][batch["groups"] == g].tolist())
        assert pair in ([0.0, 1.0], [0.5, 0.5])
        advantage = sorted(batch["advantages"][batch["groups"] == g].tolist())
        want = math.sqrt(0.5) if pair[0] == 0.0 else 0.0
        assert advantage == pytest.approx([-want, want], abs=1e-6)


@pytest.mark.oracle("paco-grpo-flow")
def test_tamed_rewards_of_arrays_are_the_oracles() -> None:
    """And one step of each rollout is trained, the same for all."""
    batch = batch_of("paco-grpo-flow", "rewards.weights.right=5", "task.radius=1.2")
    components = {name: value.tolist() for name, value in batch.columns["components"].items()}  # type: ignore[union-attr]
    want = paco_grpo.log_tamed(components, {"closeness": 1.0, "right": 5.0})
    np.testing.assert_allclose(batch["rewards"], want, rtol=1e-5)
    spread = float(np.std(want))
    for g in range(4):
        rows = (batch["groups"] == g).nonzero().squeeze(-1).tolist()
        mine = [want[i] for i in rows]
        centred = [(r - sum(mine) / len(mine)) / (spread + 1e-6) for r in mine]
        np.testing.assert_allclose(batch["advantages"][rows], centred, rtol=1e-4, atol=1e-5)
    assert (batch["mask"].sum(-1) == 1).all() and len(batch["mask"].unique(dim=0)) == 1


@pytest.mark.reduction("paco-grpo-flow")
def test_far_above_every_variation_it_is_the_weighted_sum() -> None:
    batch = batch_of("paco-grpo-flow", "rewards.weights.right=5", "rewards.shaping.log_tamed.above=1e9")
    components = batch.columns["components"]
    np.testing.assert_allclose(batch["rewards"], components["closeness"] + 5 * components["right"])  # type: ignore[index]
