"""Rollout workers, reward workers and trainers on Ray: the run of one process, whatever happens to them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from test_workers import TINY, same

from coterie.api import resume, start
from coterie.errors import RecipeError, RewardError
from coterie.recipe import resolve
from coterie.scale import pool
from coterie.sections import Scale

RAY = ["scale.engine=ray", "scale.cpus=0.1"]
EVERY = ["log.rollouts_every=1"]
ONCE = '''
import os
import time
from pathlib import Path


def once(name):
    """Whether this is the first call with this name, of all processes."""
    try:
        (Path(__file__).parent / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
'''
FRAIL = '''
from coterie.pieces import strategy
from coterie.rollout.strategies.plain import plain


@strategy()
def frail(policy, prompts, seeds, sampling, entropy, step, ended=None, world=None):
    """Dies in the second step, and hangs in the third."""
    if step == 1 and once("rollout-died"):
        os._exit(1)
    if step == 2 and once("rollout-hung"):
        time.sleep(3600)
    return plain(policy, prompts, seeds, sampling, entropy, ended, world)
'''
ENDS = """

def ends(completions, **columns):
    if once("reward-died"):
        os._exit(1)
    return [float("1" in c) for c in completions]
"""


def tickets(run: Path) -> list[int]:
    """Those of the groups that each step trained on."""
    found: list[int] = []
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        rows = pq.read_table(file).to_pylist()
        groups = {(row["group"], row["ticket"]) for row in rows}
        assert len(rows) == 4 * len(groups)  # every rollout of each
        found += [ticket for _, ticket in sorted(groups)]
    return found


def complete(run: Path, step: int) -> None:
    """Every group that was drawn was trained on once, or is still to be: in the checkpoint."""
    state = torch.load(run / f"checkpoints/step-{step:06d}/state.pt")
    assert sorted([*tickets(run), *(number for number, _, _ in state["asked"])]) == list(range(state["drawn"]))


def test_as_one_process(cluster: str, tmp_path: Path) -> None:
    """Rollouts and rewards by a worker each."""
    recipe = [*TINY, *EVERY, "draw.prompts=3"]
    one = start(resolve(method="grpo", overrides=recipe), tmp_path / "one", quiet=True)
    run = start(resolve(method="grpo", overrides=[*recipe, *RAY]), tmp_path / "run", quiet=True)
    same(one.path, run.path)
    assert tickets(run.path) == tickets(one.path) == list(range(9))


@pytest.mark.cluster
def test_as_one_process_through_deaths_and_hangs(cluster: str, tmp_path: Path) -> None:
    """Two rollout workers, of which one dies and one hangs, a reward worker that dies, two trainers."""
    (tmp_path / "frail.py").write_text(ONCE + FRAIL)
    (tmp_path / "ends.py").write_text(ONCE + ENDS)
    pieces = [f"rollout.strategy={tmp_path}/frail.py:frail", f"rewards.functions={tmp_path}/ends.py:ends"]
    tiny = [*TINY, *EVERY, *pieces]
    for name in ("rollout-died", "rollout-hung", "reward-died"):
        (tmp_path / name).touch()
    one = start(resolve(overrides=tiny), tmp_path / "one", quiet=True)
    for name in ("rollout-died", "rollout-hung", "reward-died"):
        (tmp_path / name).unlink()
    team = [*RAY, "scale.rollout_workers=2", "scale.train_workers=2", "scale.timeout=8"]
    run = start(resolve(overrides=[*tiny, *team]), tmp_path / "run", quiet=True)
    assert {p.name for p in tmp_path.iterdir()} > {"rollout-died", "rollout-hung", "reward-died"}
    assert sum(row.pop("workers/replaced", 0.0) for row in run.metrics) >= 3
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))
    same(one.path, run.path)
    assert tickets(run.path) == tickets(one.path) == list(range(12))


SLOW = """
from coterie.pieces import strategy
from coterie.rollout.strategies.plain import plain


@strategy()
def stuck(policy, prompts, seeds, sampling, entropy, step, ended=None, world=None):
    if step == 2 and once("slow"):
        time.sleep(3600)
    return plain(policy, prompts, seeds, sampling, entropy, ended, world)
"""


@pytest.mark.cluster
def test_a_worker_that_is_slower_than_others_is_replaced(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before it is silent for `scale.timeout`: half an hour."""
    monkeypatch.setattr(pool, "SOON", 2.0)
    monkeypatch.setattr(pool, "KNOWN", 4)
    (tmp_path / "stuck.py").write_text(ONCE + SLOW)
    tiny = [*TINY, *EVERY, f"rollout.strategy={tmp_path}/stuck.py:stuck"]
    (tmp_path / "slow").touch()
    one = start(resolve(overrides=tiny), tmp_path / "one", quiet=True)
    (tmp_path / "slow").unlink()
    run = start(resolve(overrides=[*tiny, *RAY, "scale.rollout_workers=2"]), tmp_path / "run", quiet=True)
    assert (tmp_path / "slow").exists()
    assert [row.pop("workers/replaced", None) for row in run.metrics] == [None, None, None, 1.0]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))
    same(one.path, run.path)
    assert tickets(run.path) == tickets(one.path) == list(range(12))


def test_how_long_a_worker_may_take() -> None:
    """Only a job that is new to all is measured by the others, and none when little is known."""
    watched: Any = object.__new__(pool.Pool)
    watched.scale = Scale(engine="ray", timeout=1000.0, slow=5.0)
    watched.took = {"roll": deque([20.0] * (pool.KNOWN - 1))}
    watched.tries = {3: 2}
    actor: Any = SimpleNamespace(kind="roll")

    def limit(job: int | None) -> float:
        return watched._limit(pool._Task(actor, 0.0, None if job is None else SimpleNamespace(number=job)))

    assert limit(1) == 1000.0
    watched.took["roll"].append(900.0)
    assert (limit(None), limit(1), limit(3)) == (1000.0, 100.0, 1000.0)
    watched.took["roll"] = deque([0.1] * pool.KNOWN)
    assert limit(1) == pool.SOON
    watched.took["roll"] = deque([600.0] * pool.KNOWN)
    assert limit(1) == 1000.0


def begun(cluster: str, run: Path, *more: str) -> subprocess.Popen[str]:
    """A long run of another driver that has passed its first steps."""
    recipe = [*TINY, *EVERY, *RAY, *more, "steps=100000"]
    command = [sys.executable, "-m", "coterie", "train", *recipe, "-q", "-o", str(run)]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    until = time.monotonic() + 200
    while not (run / "checkpoints/step-000003").exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.1)
    return process


def titled(title: str) -> list[int]:
    """The processes with this title that Ray has started for these tests."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title in line.read_text() and parent(parent(int(line.parent.name))) == os.getpid():
                found.append(int(line.parent.name))
        except OSError:
            continue
    return sorted(found)


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("victim", ["driver", "trainer"])
def test_what_ends_the_run_leaves_a_checkpoint(victim: str, cluster: str, tmp_path: Path) -> None:
    """Ahead of the trainer, with groups under way: after resuming, none is lost and none is trained on twice."""
    run = tmp_path / "run"
    trainers = f"scale.train_workers={1 if victim == 'driver' else 2}"
    process = begun(cluster, run, "scale.max_staleness=2", "scale.restarts=0", trainers)
    if victim == "driver":
        process.kill()
        process.communicate(timeout=60)
    else:
        os.kill(titled("ray::_Trainer")[0], signal.SIGKILL)
        said = process.communicate(timeout=120)[1]
        assert process.returncode != 0 and "trainer 1 of 2 died" in said and "coterie resume" in said
    last = max(int(p.name[-6:]) for p in (run / "checkpoints").glob("step-0*"))
    for late in (run / "rollouts").glob("step-*.parquet"):
        assert int(late.name[5:11]) <= last + 1  # a step after the checkpoint is done again, and written over
    resume(run, steps=last + 3, workers=1, quiet=True)
    complete(run, last + 3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("staleness/max", 0.0) for row in rows) <= 2.0


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("sync", ["objects", "direct"])
def test_killed_at_random_times(sync: str, cluster: str, tmp_path: Path) -> None:
    """Workers that roll out or grade, and a trainer, one after the other, each at any moment of a step."""
    run, rng = tmp_path / "run", random.Random(0)
    more = ["scale.rollout_workers=2", "scale.train_workers=2", "scale.max_staleness=2", "scale.restarts=9"]
    more.append(f"scale.sync={sync}")
    process = begun(cluster, run, *more)

    def steps() -> int:
        return max(int(p.name[-6:]) for p in (run / "checkpoints").glob("step-0*[0-9]"))

    for title in rng.sample(["ray::Worker"] * 4 + ["ray::_Trainer"] * 2, 6):
        time.sleep(rng.uniform(0.0, 1.0))
        os.kill(rng.choice(titled(title)), signal.SIGKILL)
        at, until = steps(), time.monotonic() + 200
        while steps() < at + 3:
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["workers/restarts"] == 2.0
    complete(run, rows[-1]["step"])


def test_what_cannot_be_is_said(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"need 9 CPUs .* has 2"):
        start(resolve(overrides=[*TINY, "scale.engine=ray", "scale.rollout_workers=8"]), tmp_path / "run")
    with pytest.raises(RecipeError, match="only exists in this process"):
        start(resolve(overrides=[*TINY, *RAY], functions=[lambda completions, **_: [1.0] * len(completions)]))
    with pytest.raises(RecipeError, match=r"is of scale\.engine=ray"):
        resolve(overrides=[*TINY, "scale.max_staleness=1"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"coterie\[scale\]"):
        start(resolve(overrides=[*TINY, *RAY]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
def test_a_reward_that_fails_ends_the_run_with_its_message(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text("def picky(completions, **columns):\n    raise ValueError('not here')\n")
    with pytest.raises(RewardError, match="'picky' raised ValueError: not here"):
        recipe = resolve(overrides=[*TINY, *RAY, f"rewards.functions={tmp_path}/picky.py:picky"])
        start(recipe, tmp_path / "run", quiet=True)


def test_one_process_does_not_import_ray() -> None:
    code = "import sys, coterie.loop, coterie.api, coterie.scale; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
