"""A run of two steps that is extended to four ends as one of four steps does, bit for bit, whatever has memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import TINY

MEMORY = """
import torch
from coterie.pieces import credit


@credit()
class running_mean:
    \"\"\"Reward minus a running mean of all rewards so far. [B] -> [B]\"\"\"

    def __init__(self, *, rate: float = 0.5):
        self.rate, self.mean, self.calls = rate, 0.0, 0

    def __call__(self, rewards, groups):
        self.calls += 1
        self.mean += self.rate / self.calls * (float(rewards.mean()) - self.mean)
        return rewards - self.mean

    def state_dict(self):
        return {"mean": self.mean, "calls": self.calls}

    def load_state_dict(self, state):
        self.mean, self.calls = state["mean"], state["calls"]
"""
CASES = {
    "stale batches": ["update.staleness=1", "update.epochs=2", "update.minibatches=2", "--method", "grpo+ppo-clip"],
    "moving reference": ["reference={update: ema, decay: 0.5}", "--method", "grpo+kl"],
    "periodic reference": [
        "reference={update: periodic, every: 3}",
        "objective.terms.kl.coef=1",
        "--method",
        "grpo+kl",
    ],
    "momentum": ["optimizer={sgd: {lr: 0.05, momentum: 0.9}}", "--method", "rloo"],
    "schedules": ["optimizer.lr={from: 1e-3, to: 1e-4, over: 4}", "rollout.temperature={from: 1, to: 0.7, over: 4}"],
    "half precision": ["model.dtype=bfloat16", "optimizer.lr=1e-4"],
    "adapters": ["model.lora.r=2", "reference={update: ema, decay: 0.5}", "--method", "grpo+kl"],
    "refills": ["selection.filters.dynamic_sampling.metric=rewards", "--method", "dapo"],
    "a piece of one's own": ["credit.baseline=mine.py:running_mean"],
    "an epoch's end": ["task.train=6"],
    "token rewards": ["--method", "reinforce++"],
    "records of prompts": ["task.train=6", "draw.prompts=3", "--method", "spo-single"],
    "tracked quantiles": ["--method", "riskpo"],
}


def rows(run: Path) -> list[dict]:
    """Metrics without clocks, and without the evaluation that the shorter run does at its end."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skip = ("time/", "system/", "tokens/per_second", "eval/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in found]


@pytest.mark.parametrize("case", CASES)
def test_an_extended_run_is_the_longer_run(
    case: str, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MEMORY)
    args = ["train", *TINY, "task.dense=true", *CASES[case], "-q"]
    assert cli(*args, "steps=4", "-o", "long").code == 0
    assert cli(*args, "steps=2", "-o", "short").code == 0
    monkeypatch.chdir("/")  # a run is resumed from anywhere
    assert cli("resume", str(tmp_path / "short"), "steps=4", "-q").code == 0
    long, short = tmp_path / "long", tmp_path / "short"
    assert rows(short) == rows(long)
    a, b = (load_file(next((r / "checkpoints/step-000004/policy").glob("*.safetensors"))) for r in (long, short))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    start = load_file(next((long / "checkpoints/step-000002/policy").glob("*.safetensors")))
    assert any(not torch.equal(a[k], start[k]) for k in a), "something was learned after step 2"
