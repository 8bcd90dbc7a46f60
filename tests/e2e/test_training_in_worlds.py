"""Whole runs in worlds: one that is taught, and one whose environments break down all the time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.api import start
from coterie.cli.demo import DEMOS, RECIPES
from coterie.environments import World
from coterie.environments.frozen_lake import FrozenLake
from coterie.recipe import resolve
from coterie.tasks.frozen_lake import frozen_lake

TINY = [
    "task=frozen-lake", "model={init: {layers: 1, width: 32, heads: 4, context: 96}}", "threads=1",
    "rollout.max_tokens=72", "rollout.group_size=4", "draw.prompts=8", "log.rollouts_every=0", "checkpoint.every=0",
]  # fmt: skip


class Faulty(FrozenLake):
    """One row in ten raises, one answers garbage."""

    def reset(self, row: Any) -> str:
        self.kind = sum(row["prompt"].encode()[i] * (i + 1) for i in range(len(row["prompt"]))) % 10
        return super().reset(row)

    def step(self, action: str) -> Any:
        if self.kind == 1:
            raise ValueError("broken")
        return "garbage" if self.kind == 2 else super().step(action)


def run(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    return start(resolve(method="grpo", overrides=[*TINY, *overrides]), folder, quiet=True).metrics


def test_a_taught_player_does_better_on_grids_it_has_not_seen(tmp_path: Path) -> None:
    settings = ("steps=1", "evaluation={every: 0, prompts: 100, samples: 1, greedy: false}")
    taught = run(tmp_path / "taught", *settings, "warm_start={steps: 60, batch: 32, lr: 3.0e-3}")
    untaught = run(tmp_path / "untaught", *settings)
    assert taught[0]["eval/accuracy"] > untaught[0]["eval/accuracy"] + 0.1
    assert [row["episode/failed_share"] for row in taught if "reward/mean" in row] == [0.0]


def test_a_run_goes_on_where_environments_break_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[frozen_lake.__module__]  # in its package the name is the task's
    monkeypatch.setattr(module, "World", lambda make, **how: World(Faulty, **how))
    rows = run(tmp_path / "run", "steps=3", "evaluation={every: 0, prompts: 8, samples: 1, greedy: false}")
    shares = [row["episode/failed_share"] for row in rows if "reward/mean" in row]
    assert len(shares) == 3 and 0 < max(shares) < 0.5
    nones = [row["reward/nones"] for row in rows if "reward/mean" in row]
    assert nones == [32 * share for share in shares]  # just those have no reward
    assert all(math.isfinite(row["reward/mean"]) for row in rows if "reward/mean" in row)


def test_the_recipes_of_worlds_are_whole_and_their_transcripts_are_kept(tmp_path: Path) -> None:
    for name in ("frozen-lake", "guess-number", "calculator"):
        assert resolve(file=RECIPES / f"{name}.yaml").single["task"].piece.slug == name
    assert DEMOS["agent"] == "frozen-lake.yaml"
    small = [
        "steps=1", "warm_start.steps=1", "draw.prompts=2", "rollout.group_size=2", "log.rollouts_every=0",
        "model.init.width=16", "evaluation={every: 0, prompts: 4, samples: 1, greedy: false}",
    ]  # fmt: skip
    start(resolve(file=RECIPES / DEMOS["agent"], overrides=small), tmp_path / "run", quiet=True)
    told = [json.loads((tmp_path / f"run/samples/step-{step:06d}.json").read_text()) for step in (0, 1)]
    held_out = frozen_lake().held_out
    for episodes in told:
        assert [e["prompt"] for e in episodes] == [row["prompt"] for row in held_out[:3]]
        assert all(1 <= len(e["turns"]) <= 7 and e["failed"] is None for e in episodes)
    assert "<h2>Episodes</h2>" in (tmp_path / "run/report.html").read_text()
