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

ROUNDING = "optimizer.eps=1e-5"
"""Where nobody learns anything, the KL to the reference is rounding, and Adam makes whole steps of that."""

FLOW = ["task=ring", "model={flow: {layers: 1, width: 8, heads: 2}}", "rollout.max_tokens=64", "denoise.steps=4"]
WORLD = [
    "task={guess-number: {turns: 2, largest: 99, train: 20, held_out: 8}}",
    "warm_start.steps=30",
    "warm_start.lr=1e-2",
    "rollout.max_tokens=12",
]


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
        ("grpo+kl", 2, ["update.minibatches=2", "warm_start.steps=2", ROUNDING]),
        # fewer examples than workers, and fewer problems
        (
            "grpo",
            4,
            [
                "draw.prompts=3",
                "update.tokens_per_microbatch=32",
                "warm_start.steps=3",
                "warm_start.batch=3",
                "warm_start.stop_at=1.0",
                "warm_start.check_every=1",
                "evaluation.prompts=3",
            ],
        ),
        ("reinforce++", 2, []),
        ("dapo", 2, ["selection.filters.dynamic_sampling.metric=rewards", "rollout.group_size=2"]),
        ("flow-grpo", 2, [*FLOW, "warm_start.steps=2", "warm_start.batch=5"]),
        pytest.param("flow-grpo", 4, FLOW, marks=pytest.mark.cluster),
        pytest.param("grpo", 2, WORLD, marks=pytest.mark.cluster),
    ],
)
def test_as_one_process(method: str, count: int, more: list[str], tmp_path: Path) -> None:
    one = start(resolve(method=method, overrides=[*TINY, *more]), tmp_path / "one", quiet=True)
    several = start(resolve(method=method, overrides=[*TINY, *more, *workers(count)]), tmp_path / "several", quiet=True)
    same(one.path, several.path)
    if method == "dapo":
        assert any(row.get("groups/dropped") for row in several.metrics)  # and rounds of fewer prompts were drawn


def test_resume_with_another_number(tmp_path: Path) -> None:
    """From two workers to one and back: the run that one process makes in one go."""
    tiny = [*TINY, "evaluation.every=1"]  # a step that was once the last was evaluated
    overrides = [*tiny, "steps=4"]
    whole = start(resolve(overrides=overrides), tmp_path / "whole", quiet=True)
    cut = start(resolve(overrides=[*tiny, "steps=1", *workers(2)]), tmp_path / "cut", quiet=True)
    resume(cut.path, steps=3, workers=1, quiet=True)
    resume(cut.path, steps=4, workers=2, quiet=True)
    same(whole.path, cut.path, steps=4)


def worker_of(parent: int) -> int:
    """The process that a run has started to train with it."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = (stat.parent / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == parent and "coterie.scale" in command:
                return int(stat.parent.name)
        time.sleep(0.1)
    raise AssertionError("no worker was started")


def begun(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A long run on two processes that has passed its first steps."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "coterie",
        "train",
        *TINY,
        "steps=100000",
        *workers(2),
        "scale.restarts=0",
        "-q",
        "-o",
        str(run),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
    until = time.monotonic() + 200
    while not (run / "checkpoints/step-000002").exists():
        assert process.poll() is None and time.monotonic() < until, process.stderr
        time.sleep(0.1)
    return process, run


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_killed_worker_ends_the_run(tmp_path: Path) -> None:
    """With one message that says who and what next; the last checkpoint goes on with one process."""
    process, run = begun(tmp_path)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "worker 1 of 2 was killed (SIGKILL)" in said and "coterie resume" in said and "Traceback" not in said
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    at = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert resume(run, steps=at + 1, workers=1, quiet=True).last["step"] == at + 1


def test_an_interrupt_finishes_the_step_everywhere(tmp_path: Path) -> None:
    process, run = begun(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted" and (run / f"checkpoints/step-{status['step']:06d}").is_dir()


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    """A reward function that fails in one process only: its message is the run's."""
    (tmp_path / "picky.py").write_text(
        "import os\n\n\ndef picky(completions, **columns):\n"
        "    if os.environ.get('RANK') == '1':\n        raise ValueError('not here')\n"
        "    return [1.0] * len(completions)\n"
    )
    reward = f"rewards.functions={tmp_path / 'picky.py'}:picky"
    with pytest.raises(RunError, match=r"worker 1 of 2 failed: .*not here"):
        start(resolve(overrides=[*TINY, reward, *workers(2)]), tmp_path / "run", quiet=True)


def test_what_several_workers_cannot_do_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"scale\.engine=torchrun"):
        resolve(overrides=[*TINY, "scale.train_workers=2"])
    with pytest.raises(RecipeError, match="only exists in this process"):
        start(resolve(overrides=[*TINY, *workers(2)], functions=[lambda completions, **_: [1.0] * len(completions)]))


def test_plan_shows_a_worker_s_share() -> None:
    from coterie.cli.plan import derived

    numbers = derived(resolve(overrides=[*TINY, "draw.prompts=5", *workers(2)]), 40, 12)
    assert (numbers["workers"], numbers["most prompts a worker"], numbers["most rollouts a worker"]) == (2, 3, 12)
