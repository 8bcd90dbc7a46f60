"""ZO-RankSGD on a flow policy of which nobody says how good its samples are, only which of two is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.loop import begin, credit, select
from coterie.recipe import resolve
from coterie.run import Run
from coterie.update import update
from tests.e2e.conftest import DENOISES, TINY

JUDGES = """
def _far(points, target):
    return [sum((a - b) ** 2 for a, b in zip(p, t)) for p, t in zip(points, target)]

def nearer(prompts, first, second, target):
    return [(1.0, 0.0) if a < b else (0.0, 1.0) for a, b in zip(_far(first, target), _far(second, target))]

def loudly(prompts, first, second, target):
    return [(70.0, 3.0) if a < b else (-2.0, 0.1) for a, b in zip(_far(first, target), _far(second, target))]
"""


class Silent:
    """What a run reports to; nobody looks."""

    def note(self, text: str) -> None: ...

    def step(self, run: Run, batch: Any, clock: Clock) -> None: ...

    def checkpoint(self, run: Run) -> None: ...


def train(tmp_path: Path, judge: str, steps: int, *more: str) -> tuple[Run, list[float]]:
    """The run, and the mean distance of its rollouts to where they should be, step by step."""
    (tmp_path / "judges.py").write_text(JUDGES)
    run = build(resolve(method="pref-grpo-flow+zo-ranksgd", overrides=[
        *TINY, *DENOISES, f"rewards.pairwise.judge={tmp_path}/judges.py:{judge}", "objective.trust_region=unclipped",
        "optimizer={zo_ranksgd: {lr: 0.03, mu: 0.01, candidates: 12, best: 4}}", "draw.prompts=8",
        "rollout.group_size=8", "warm_start.steps=40", *more,
    ]))  # fmt: skip
    begin(run, Silent())  # type: ignore[arg-type]
    far = []
    for step in range(steps):
        batch = collect(run, step, Clock())
        assert batch is not None
        places = [batch.prompts[g].row["target"] for g in batch["groups"].tolist()]
        far.append(float(np.mean([np.hypot(*(x - p)) for x, p in zip(batch.texts, places, strict=True)])))
        assert set((7 * batch["rewards"]).round(decimals=4).tolist()) <= set(range(8))  # win rates, and nothing else
        update(run, select(run, credit(run, batch, step, Clock()), step, Clock()), step, Clock())
    run.rewards.close()
    return run, far


def test_it_learns_from_preferences_alone(tmp_path: Path) -> None:
    _, far = train(tmp_path, "nearer", 20)
    assert np.mean(far[-4:]) < 0.85 * np.mean(far[:4])


@pytest.mark.reduction("zo-ranksgd")
def test_points_of_the_judge_count_for_their_order_alone(tmp_path: Path) -> None:
    """The same preferences in other points: the same weights, bit for bit."""
    runs = [train(tmp_path, judge, 3, "warm_start.steps=3")[0] for judge in ("nearer", "loudly")]
    weights = [[p.detach() for p in run.policy.trainable_parameters()] for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
