"""A run so small that it takes a second, and the command line called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY = [
    "task={sort: {digits: 2, train: 40, held_out: 12}}",
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}",
    "threads=1", "steps=2", "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=4",
    "evaluation.prompts=8", "optimizer.lr=1e-3", "log.rollouts_every=1", "checkpoint.every=2",
]  # fmt: skip

DENOISES = [
    "task=ring", "model={flow: {layers: 1, width: 8, heads: 2}}", "rollout.max_tokens=64", "denoise.steps=4",
]  # fmt: skip
"""A policy that denoises, in place of TINY's model and task."""


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Call `coterie ARGS` in an empty working directory; returns exit code and what was printed."""
    from coterie.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*args: str) -> Answer:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["coterie", *args])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
