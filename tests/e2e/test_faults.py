"""Environments that hang, crash, answer garbage and die: the run goes on as if those episodes had not been."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Answer

FILE = Path(__file__).with_name("unreliable.py")
TINY = [
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1", "steps=3", "draw.prompts=4",
    "rollout.group_size=4", "rollout.max_tokens=24", "optimizer.lr=1e-2", "checkpoint.every=2", "log.rollouts_every=1",
]  # fmt: skip
TOLD = ("time/", "system/", "tokens/per_second", "episode/failed_share", "episode/done_share")
"""What a clock says, and what the world says of its episodes."""


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints/step-000003/policy").glob("*.safetensors")
    return load_file(file)


def assert_same(got: Path, want: Path) -> None:
    kept = [[{k: v for k, v in r.items() if not k.startswith(TOLD)} for r in rows(run)] for run in (got, want)]
    assert kept[0] == kept[1]
    a, b = weights(got), weights(want)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_as_if_the_episodes_that_failed_had_not_been(cli: Callable[..., Answer], tmp_path: Path) -> None:
    """Bit for bit, the weights and metrics are those of a run in which the same episodes end and have no reward."""
    answer = cli("train", f"task={FILE}:unreliable", *TINY, "-q", "-o", str(tmp_path / "faulty"))
    assert answer.code == 0, answer.err
    answer = cli(
        "train", f"task={{'{FILE}:unreliable': {{faulty: false}}}}", *TINY, "-q", "-o", str(tmp_path / "spared")
    )
    assert answer.code == 0, answer.err
    steps = [r for r in rows(tmp_path / "faulty") if "reward/mean" in r]
    assert len(steps) == 3 and all(0 < r["episode/failed_share"] < 1 for r in steps)
    assert [r["reward/nones"] for r in steps] == [16 * r["episode/failed_share"] for r in steps]
    assert all(r["episode/failed_share"] == 0 for r in rows(tmp_path / "spared") if "reward/mean" in r)
    assert_same(tmp_path / "faulty", tmp_path / "spared")

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "faulty", resumed)
    shutil.rmtree(resumed / "checkpoints/step-000003")
    answer = cli("resume", str(resumed), "-q")
    assert answer.code == 0, answer.err
    assert_same(resumed, tmp_path / "faulty")
    assert [r for r in rows(resumed) if "reward/mean" in r][2]["episode/failed_share"] == steps[2][
        "episode/failed_share"
    ]
