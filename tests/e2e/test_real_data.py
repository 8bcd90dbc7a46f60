"""Real data end to end: GSM8K from its own files, a small model from random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared/data/gsm8k"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"GSM8K is not at {DATA}")


@needs_data
def test_every_reference_answer_is_accepted_and_every_corrupted_one_rejected(cli: Callable) -> None:
    answer = cli("tasks", "validate", "gsm8k", f"source={DATA}", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0 and report["rows"] == report["corrupted"] == 7473 + 1319
    assert report["references_rejected"] == report["corrupted_accepted"] == 0


@needs_data
def test_it_trains(cli: Callable, tmp_path: Path) -> None:
    answer = cli(
        "train", "--task", "gsm8k", f"task.source={DATA}", "task.limit=64", "task.held_out=16",
        "model={init: {layers: 1, width: 32, context: 1400}}", "threads=1", "steps=2", "draw.prompts=4",
        "rollout.group_size=4", "rollout.max_tokens=8", "evaluation.prompts=8", "warm_start.steps=2",
        "warm_start.batch=4", "--method", "dr-grpo", "-q", "-o", "run",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1, 2] and rows[0]["warm_start/loss"] > 1.0
    assert (tmp_path / "run/report.html").is_file()
