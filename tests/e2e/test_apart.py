"""Agents trained by runs of their own, which exchange rollouts and weights: they are those of one process, bit for bit,
whoever is killed and when."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.processes import Command
from tests.e2e.test_policies import same, weights
from tests.e2e.test_resume import metrics

TINY = [
    "task=delegation", "model={init: {layers: 1, width: 16, heads: 2, context: 24}}", "threads=1", "steps=6",
    "policies={main: {}, left: {}, right: {}}", "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=16",
    "evaluation={every: 3, prompts: 4, greedy: false}", "log.rollouts_every=0", "checkpoint={every: 2, keep: 2}",
    "optimizer.lr=1e-2", "warm_start={steps: 4, batch: 8, lr: 1e-2}", "--method", "m-grpo",
]  # fmt: skip


def trains(folder: Path, name: str, *more: str) -> Command:
    """The run of some agents, under way."""
    run = folder / name.partition(",")[0]
    meeting = [f"apart.path={folder}/meeting", f"apart.train=[{name}]", "apart.patience=60"]
    return Command("train", *TINY, *meeting, *more, "-q", "-o", str(run))


def together(folder: Path, *names: str, more: tuple[str, ...] = ()) -> None:
    commands = [trains(folder, name, *more) for name in names]
    for command in commands:
        assert command.wait(100) == 0, command.said.read_text()
