"""UniRL and Unified-GRPO in the loop: the reward rises, and a side whose turn it is not stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coterie.api import start
from coterie.cli.commands import fine_tune
from coterie.recipe import resolve

EXAMPLE = Path(__file__).parents[2] / "examples/picture_pairs.py"
GAMES = {"redraw": "01abcdefgh<>", "draw-and-read": "rg0123?> "}
SMALL = [
    "threads=1", "task.cells=2", "draw.prompts=6", "rollout.group_size=8", "rollout.max_tokens=16",
    "evaluation.every=0", "evaluation.prompts=2", "evaluation.greedy=false", "log.rollouts_every=0",
]  # fmt: skip
REDRAW = ["task={redraw: {characters: 1, drawings: 2}}", "policies={describe: {}, draw: {}}"]


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model for each game that is right every other time, made of the example's data."""
    folder = tmp_path_factory.mktemp("cold")
    for game, vocabulary in GAMES.items():
        pairs = folder / f"{game}.jsonl"
        subprocess.run([sys.executable, str(EXAMPLE), game, str(pairs), "2"], check=True)
        recipe = resolve(
            overrides=[
                f"task={{jsonl: {{path: {pairs}, verifier: exact, held_out: 0}}}}", "threads=1", "rollout.max_tokens=8",
                f"model={{init: {{vocabulary: '{vocabulary}', layers: 1, width: 32, heads: 2, context: 48}}}}",
                "warm_start={steps: 200, stop_at: 0.5, check_every: 10, lr: 5e-3, batch: 32}", "evaluation.prompts=32",
            ]
        )  # fmt: skip
        fine_tune(recipe, folder / game, quiet=True, as_json=False)
    return {game: f"model={folder / game}" for game in GAMES}


def mean(rows: list[dict[str, Any]], name: str) -> float:
    found = [row[name] for row in rows if name in row]
    return sum(found) / len(found)


def test_one_policy_that_draws_and_reads_earns_more(cold: dict[str, str], tmp_path: Path) -> None:
    overrides = ["task=draw-and-read", cold["draw-and-read"], "steps=60", "optimizer.lr=2e-3", *SMALL]
    rows = start(resolve(method="unirl", overrides=overrides), tmp_path / "run", quiet=True).metrics[1:]
    assert mean(rows[-10:], "reward/mean") > mean(rows[:10], "reward/mean") + 0.05
    assert all(row["answerable/share"] == pytest.approx(row["mutual/fit_share"]) for row in rows)  # one answer each


def weights(run: Path, step: int, agent: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/policies/{agent}/policy/model.safetensors")


def test_more_comes_back_and_each_side_rests_while_the_other_learns(cold: dict[str, str], tmp_path: Path) -> None:
    turns = [
        "steps=60",
        "optimizer.lr=4e-3",
        "selection.weights.take_turns.every=20",
        "checkpoint={every: 20, keep: 9}",
    ]
    overrides = [*REDRAW, cold["redraw"], *SMALL, *turns]
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
