"""Killed at any moment, a resumed run ends with the weights and metrics of one that was never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import DENOISES, TINY
from tests.e2e.processes import Command, finish, wait_for

PLAIN = ["steps=8", "checkpoint.every=2", "evaluation.every=3"]
FULL = [  # every kind of state there is: buffers, reference, several optimizer steps, refills, a schedule
    *PLAIN, "update.epochs=2", "update.minibatches=2", "update.staleness=1", "reference.update=ema",
    "optimizer.lr={from: 0, to: 1e-3, over: 5}", "warm_start.steps=3", "--method", "dapo+kl",
]  # fmt: skip
LORA = [*PLAIN, "model.lora.r=4"]
FLOW = [  # states of samples in batches that wait, a reference, guidance, a schedule of the noise
    *PLAIN, *DENOISES, "warm_start.steps=3", "update.epochs=2", "update.minibatches=2", "update.staleness=1",
    "denoise.guidance=1.5", "--method", "flow-grpo", "rollout.sampler.flow_sde.noise={from: 0.9, to: 0.5, over: 6}",
]  # fmt: skip
CASES = {"plain": PLAIN, "full": FULL, "lora": LORA, "flow": FLOW}


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints/step-000008/policy").glob("*.safetensors")
    return load_file(file)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows without what a clock or a process's memory says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "system/", "tokens/per_second"))} for r in rows]


def assert_same_run(got: Path, want: Path) -> None:
    assert metrics(got) == metrics(want)
    a, b = weights(got), weights(want)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each case, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    for name, args in CASES.items():
        finish("train", *TINY, *args, "-q", "-o", str(folder / name), picture=name == "plain")
    assert (folder / "plain" / "curves.png").stat().st_size > 10_000
    return {name: folder / name for name in CASES}


def resume_until_done(run: Path, *, kills: int, seed: int) -> None:
    """Resume, killing it again at random moments, then let it finish."""
    rng = random.Random(seed)
    for _ in range(kills):
        command = Command("resume", str(run), "-q")
        command.wait(rng.uniform(0.1, 0.6))
        command.kill()
    status = run / "status.json"  # not there yet where every kill came early
    if not status.exists() or json.loads(status.read_text())["state"] != "finished":
        finish("resume", str(run), "-q")


@pytest.mark.parametrize("case", CASES)
def test_killed_while_writing_a_checkpoint(case: str, whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = Command("train", *TINY, *CASES[case], "-q", "-o", str(run))
    wait_for(run, command.over, "checkpoints/step-000004")
    wait_for(run, command.over, "checkpoints/.tmp-*")
    command.kill()
    resume_until_done(run, kills=0, seed=0)
    assert not list(run.glob("checkpoints/.tmp-*"))
    assert_same_run(run, whole[case])


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_again_and_again(seed: int, whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = Command("train", *TINY, *FULL, "-q", "-o", str(run))
    wait_for(run, command.over, "metrics.jsonl")
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    command.kill()
    resume_until_done(run, kills=1, seed=seed)
    assert_same_run(run, whole["full"])


def test_killed_before_the_first_checkpoint_starts_over(whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = Command("train", *TINY, *PLAIN, "-q", "-o", str(run))
    wait_for(run, command.over, "recipe.yaml")
    command.kill()
    finish("resume", str(run), "-q")
    assert_same_run(run, whole["plain"])


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "coterie", "train", *TINY, *FULL, "-o", str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(run, lambda: process.poll() is not None, "checkpoints/step-000002")
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"coterie resume {run}" in out.replace("\n", "")
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    finish("resume", str(run), "-q")
    assert_same_run(run, whole["full"])


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish("train", *TINY, *PLAIN, "-q", "-o", str(run))
    with (run / "checkpoints/step-000008/state.pt").open("r+b") as file:
        file.truncate(100)
    finish("resume", str(run), "-q")
    assert_same_run(run, whole["plain"])


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from coterie import checkpoint
plain = checkpoint.CheckpointStore.save
def save(self, step, write):
    if step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return plain(self, step, write)
checkpoint.CheckpointStore.save = save
from coterie.cli import main
sys.argv = ["coterie", *sys.argv[1:]]
main()
"""


def test_a_full_disk_stops_the_run_and_loses_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "train", *TINY, *PLAIN, "-q", "-o", str(run)], capture_output=True, text=True
    )
    assert process.returncode == 5, process.stderr
    assert "step-000002" in process.stderr and "resume" in process.stderr and "Traceback" not in process.stderr
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-000000", "step-000002"}
    finish("resume", str(run), "-q")
    assert_same_run(run, whole["plain"])
