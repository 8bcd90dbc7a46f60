"""The real torchrun: a recipe on two processes, of which one is killed, and the run goes on from its checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ray import complete, tickets
from test_workers import TINY, same

from coterie.api import start
from coterie.recipe import resolve

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "coterie"]
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
        command = [*TORCHRUN, "train", *recipe, "steps=40", "-q", "-o", str(run)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
        until = time.monotonic() + 200
        while not (run / "checkpoints/step-000002").exists():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.kill(ranks(process.pid)[victim], signal.SIGKILL)
        assert process.wait(120) != 0
    at = max(int(p.name[-6:]) for p in (run / "checkpoints").glob("step-0*"))
    done = subprocess.run([*TORCHRUN, "resume", str(run), f"steps={at + 2}", "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tickets(run) == list(range(4 * (at + 2)))
    complete(run, at + 2)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(at + 3))
    one = start(resolve(overrides=[*recipe, f"steps={at + 2}"]), tmp_path / "one", quiet=True)
    same(one.path, run, steps=at + 2)
