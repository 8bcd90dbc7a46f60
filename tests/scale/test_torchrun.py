"""The real torchrun: a recipe on two processes, of which one is killed, and the run goes on from its checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from test_ray import complete, tickets
from test_workers import TINY, same

from coterie.api import start
from coterie.errors import RecipeError, RunError
from coterie.recipe import resolve
from coterie.scale.processes import _store_of_attempt

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COTERIE = ["-m", "coterie"]
SLOW = """
import time


def slow(completions, **columns):
    time.sleep(0.1)
    return [float("1" in c) for c in completions]
"""


def ranks(parent: int) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            variables = (stat.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.update({int(v[5:]): int(stat.parent.name) for v in variables if v.startswith(b"RANK=")})
    return [found[rank] for rank in sorted(found)]


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_resumed(victim: int, tmp_path: Path) -> None:
    """No rollout is lost or made twice, and the run is that of one process that nobody stopped."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    recipe = [*TINY, f"rewards.functions={tmp_path}/slow.py:slow", "log.rollouts_every=1", "evaluation.every=1"]
    with (tmp_path / "said").open("w") as said:
        command = [*TORCHRUN, *COTERIE, "train", *recipe, "steps=40", "-q", "-o", str(run)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
        until = time.monotonic() + 200
        while not (run / "checkpoints/step-000002").exists():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.kill(ranks(process.pid)[victim], signal.SIGKILL)
        assert process.wait(120) != 0
    at = max(int(p.name[-6:]) for p in (run / "checkpoints").glob("step-0*"))
    more = [*COTERIE, "resume", str(run), f"steps={at + 2}", "-q"]
    done = subprocess.run([*TORCHRUN, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tickets(run) == list(range(4 * (at + 2)))
    complete(run, at + 2)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(at + 3))
    one = start(resolve(overrides=[*recipe, f"steps={at + 2}"]), tmp_path / "one", quiet=True)
    same(one.path, run, steps=at + 2)


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(("victim", "own_store"), [(0, "0"), (1, "0"), (1, "1")])
def test_torchrun_starts_killed_processes_again(victim: int, own_store: str, tmp_path: Path) -> None:
    """With --max-restarts and the same command, --resume in it; begun once more, it finds nothing to do. The processes
    meet in torchrun's store, or in one that the first makes.
    """
    (tmp_path / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    recipe = [*TINY, f"rewards.functions={tmp_path}/slow.py:slow", "log.rollouts_every=1", "steps=8"]
    command = [*TORCHRUN, "--max-restarts", "2", *COTERIE, "train", *recipe, "--out", str(run), "--resume", "-q"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": own_store}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        until = time.monotonic() + 200
        while not (run / "checkpoints/step-000002").exists():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.kill(ranks(process.pid)[victim], signal.SIGKILL)
        assert process.wait(200) == 0, (tmp_path / "said").read_text()
    assert tickets(run) == list(range(4 * 8))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(9)) and rows[-1].pop("workers/restarts") == 1.0
    for row in rows:
        row.pop("workers/restarts", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = start(resolve(overrides=recipe), tmp_path / "one", quiet=True)
    same(one.path, run, steps=8)
    assert subprocess.run(command).returncode == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 9


def test_restarts_on_several_machines_need_stores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        _store_of_attempt(timedelta(seconds=1))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert _store_of_attempt(timedelta(seconds=1)) == {}


def test_resume_in_the_command(tmp_path: Path) -> None:
    """It begins the run, goes on with it, finds nothing to do, and refuses another recipe."""
    run, recipe = tmp_path / "run", resolve(overrides=[*TINY, "steps=2"])
    assert start(recipe, run, quiet=True, or_resume=True).last["step"] == 2
    shutil.rmtree(run / "checkpoints/step-000002")
    again = start(recipe, run, quiet=True, or_resume=True)
    assert [row["step"] for row in again.metrics] == [0, 1, 2] and again.last["step"] == 2
    assert start(recipe, run, quiet=True, or_resume=True).metrics == again.metrics
    with pytest.raises(RunError, match="another recipe: - steps: 2"):
        start(resolve(overrides=[*TINY, "steps=3"]), run, quiet=True, or_resume=True)
    with pytest.raises(RunError, match="which run"):
        start(recipe, None, or_resume=True)
