"""UniRL and Unified-GRPO in the loop: the reward rises, and a side whose turn it is not stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coterie.api import start
from coterie.cli.demo import RECIPES
from coterie.recipe import resolve

SMALL = [
    "threads=1", "model={init: {layers: 1, width: 32, heads: 2, context: 48}}",
    "warm_start={steps: 200, batch: 32, lr: 5e-3, stop_at: 0.5, check_every: 10}",
    "draw.prompts=6", "rollout.group_size=8", "rollout.max_tokens=16",
    "evaluation={every: 0, prompts: 8, samples: 1, greedy: false}", "log.rollouts_every=0",
]  # fmt: skip
REDRAW = [
    "task={redraw: {cells: 2, characters: 1, drawings: 2, train: 64}}", "policies={describe: {}, draw: {}}",
    "warm_start.stop_at=0.3", "warm_start.check_every=5",
]  # fmt: skip


def test_their_recipes_are_whole() -> None:
    for name, method in (("draw-and-read", "unirl"), ("redraw", "uae+kl")):
        recipe = resolve(file=RECIPES / f"{name}.yaml")
        assert recipe.single["task"].piece.slug == name and recipe.method == method


def mean(rows: list[dict[str, Any]], name: str) -> float:
    found = [row[name] for row in rows if name in row]
    return sum(found) / len(found)


def test_one_policy_that_draws_and_reads_earns_more(tmp_path: Path) -> None:
    overrides = ["task={draw-and-read: {cells: 2, train: 64}}", "steps=60", "optimizer.lr=2e-3", *SMALL]
    rows = start(resolve(method="unirl", overrides=overrides), tmp_path / "run", quiet=True).metrics[1:]
    assert mean(rows[-10:], "reward/mean") > mean(rows[:10], "reward/mean") + 0.05
    assert all(row["answerable/share"] == pytest.approx(row["mutual/fit_share"]) for row in rows)  # one answer each


def weights(run: Path, step: int, agent: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/policies/{agent}/policy/model.safetensors")


def test_more_comes_back_and_each_side_rests_while_the_other_learns(tmp_path: Path) -> None:
    turns = [
        "steps=60",
        "optimizer.lr=2e-3",
        "selection.weights.take_turns.every=20",
        "checkpoint={every: 20, keep: 9}",
    ]
    overrides = [*SMALL, *REDRAW, *turns]
    result = start(resolve(method="uae", overrides=overrides), tmp_path / "run", quiet=True)
    rows = result.metrics[1:]
    assert mean(rows[-10:], "reward/mean") > mean(rows[:10], "reward/mean") + 0.05
    assert [row["agent/draw/turns/learning_share"] for row in rows] == [0.0] * 20 + [1.0] * 20 + [0.0] * 20
    moved = {
        agent: [
            any(not torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))
            for before, after in (
                (weights(result.path, s, agent), weights(result.path, s + 20, agent)) for s in (0, 20, 40)
            )
        ]
        for agent in ("describe", "draw")
    }
    assert moved == {"describe": [True, False, True], "draw": [False, True, False]}  # to the last bit
