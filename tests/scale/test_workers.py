"""Several processes give the run that one gives, end it together, and resume as any number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coterie.api import resume, start
from coterie.errors import RecipeError, RunError
from coterie.recipe import resolve

TINY = [
    "task={sort: {digits: 2, train: 40, held_out: 12, dense: true}}",
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}",
    "threads=1", "steps=3", "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=4",
    "evaluation.prompts=8", "optimizer.lr=1e-3", "log.rollouts_every=0", "checkpoint.every=1", "checkpoint.keep=9",
]  # fmt: skip
TOLERANCE = 2e-5
"""By how much weights and metrics may differ: sums in float32 are taken in another order."""


def workers(count: int) -> list[str]:
    return ["scale.engine=torchrun", f"scale.train_workers={count}"]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/policy/model.safetensors")


def same(a: Path, b: Path, steps: int = 3) -> None:
    """The same metrics, but for times and memory, and the same weights."""
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    assert len(rows[0]) == len(rows[1]) == steps + 1
    for one, other in zip(*rows, strict=True):
        assert {k for k in one if not k.startswith("time/")} == {k for k in other if not k.startswith("time/")}
        for name, value in one.items():
            if not name.startswith(("time/", "system/")) and name != "tokens/per_second":
                assert other[name] == pytest.approx(value, rel=1e-4, abs=TOLERANCE), (one["step"], name)
    before, mine, others = weights(a, 0), weights(a, steps), weights(b, steps)
    assert any(not torch.equal(before[k], mine[k]) for k in before)
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("method", "count", "more"),
    [
        ("grpo+kl", 2, ["update.minibatches=2", "warm_start.steps=2"]),
        ("grpo", 4, ["draw.prompts=3", "update.tokens_per_microbatch=32"]),
        ("reinforce++", 2, []),
        ("dapo", 2, ["selection.filters.dynamic_sampling.metric=rewards", "task.digits=1", "task.alphabet='01'"]),
    ],
)
def test_as_one_process(method: str, count: int, more: list[str], tmp_path: Path) -> None:
    one = start(resolve(method=method, overrides=[*TINY, *more]), tmp_path / "one", quiet=True)
    several = start(resolve(method=method, overrides=[*TINY, *more, *workers(count)]), tmp_path / "several", quiet=True)
    same(one.path, several.path)
