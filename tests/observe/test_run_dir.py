from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from coterie.errors import RunError
from coterie.observe.run_dir import RunDir

MADE = {"task": "sort", "method": "grpo+kl", "recipe": "steps: 3\n", "seed": 7}


def test_create_writes_recipe_and_manifest(tmp_path):
    run = RunDir.create(tmp_path / "new" / "run", **MADE)
    assert run.recipe.read_text() == "steps: 3\n"
    made = json.loads(run.manifest.read_text())
    assert made["seed"] == 7
    assert made["recipe_sha256"] == hashlib.sha256(b"steps: 3\n").hexdigest()
    assert {"python", "torch", "transformers"} <= set(made["versions"])
    assert run.rollouts.is_dir()
    assert run.checkpoints.is_dir()
    assert run.rollout_file(123) == run.rollouts / "step-000123.parquet"
    assert RunDir.open(run.path).recipe == run.recipe


def test_the_manifest_names_the_commit_of_the_working_directory(tmp_path, monkeypatch):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    monkeypatch.chdir(tmp_path)
    assert json.loads(RunDir.create(**MADE).manifest.read_text())["git_commit"] == head.strip()
    monkeypatch.setenv("PATH", "")
    assert json.loads(RunDir.create(**MADE).manifest.read_text())["git_commit"] is None


def test_default_names_say_task_and_method_and_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [RunDir.create(**{**MADE, "task": "data/my file.jsonl"}).path for _ in range(3)]
    assert len(set(names)) == 3
    assert all(p.parent.name == "runs" and p.name.startswith("data-my-file.jsonl-grpo+kl-2") for p in names)


def test_a_run_is_never_overwritten(tmp_path):
    RunDir.create(tmp_path / "run", **MADE)
    with pytest.raises(RunError, match=r"never overwritten\n.*coterie resume"):
        RunDir.create(tmp_path / "run", **MADE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="never overwritten"):
        RunDir.create(tmp_path / "file", **MADE)
    (tmp_path / "empty").mkdir()
    RunDir.create(tmp_path / "empty", **MADE)


def test_of_two_processes_that_found_a_place_free_one_gets_it(tmp_path, monkeypatch):
    first = RunDir.create(tmp_path / "run", **MADE)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # what the slower one saw when it looked
    with pytest.raises(RunError, match="never overwritten"):
        RunDir.create(tmp_path / "run", **{**MADE, "recipe": "steps: 9\n"})
    assert first.recipe.read_text() == MADE["recipe"]


def test_default_names_do_not_rely_on_looking_first(tmp_path, monkeypatch):
    first = RunDir.create(**MADE, root=tmp_path)
    monkeypatch.setattr("coterie.observe.run_dir.datetime", SameSecond)
    names = [RunDir.create(**MADE, root=tmp_path).path.name for _ in range(2)]
    monkeypatch.setattr(Path, "exists", lambda self: False)
    names += [RunDir.create(**MADE, root=tmp_path).path.name]
    assert names == ["sort-grpo+kl-20260102-030405", *(f"sort-grpo+kl-20260102-030405-{n}" for n in (2, 3))]
    assert first.recipe.is_file()


class SameSecond(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="could not be made: Not a directory"):
        RunDir.create(tmp_path / "file" / "run", **MADE)


def test_a_root_that_points_nowhere_is_said(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "not mounted")
    with pytest.raises(RunError, match="could not be made: File exists"):
        RunDir.create(**MADE, root=tmp_path / "runs")


def test_opening_what_is_no_run_names_the_runs_beside_it(tmp_path):
    RunDir.create(tmp_path / "real", **MADE)
    with pytest.raises(RunError, match=r"no recipe\.yaml\n.*real"):
        RunDir.open(tmp_path / "rael")


def test_status(tmp_path):
    run = RunDir.create(tmp_path / "run", **MADE)
    assert run.status() == {}
    run.set_status("running", 3)
    run.set_status("failed", 4, "disk full")
    assert {k: run.status()[k] for k in ("state", "step", "message")} == {
        "state": "failed",
        "step": 4,
        "message": "disk full",
    }


HOLD = """
import sys, time
from coterie.observe.run_dir import RunDir
with RunDir.open(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_a_run_and_a_dead_one_does_not_block_it(tmp_path):
    run = RunDir.create(tmp_path / "run", **MADE)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"another process is writing this run \\(pid {child.pid} on "), run.locked():
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    with run.locked():
        assert run.lock.read_text().startswith(f"pid {os.getpid()} ")


def test_a_process_cannot_lock_a_run_twice_but_may_lock_it_again(tmp_path):
    run = RunDir.create(tmp_path / "run", **MADE)
    with run.locked(), pytest.raises(RunError, match="already writing"), RunDir.open(run.path).locked():
        pass
    with run.locked():
        pass


def test_a_forked_worker_that_outlives_the_run_does_not_keep_it_locked(tmp_path):
    run = RunDir.create(tmp_path / "run", **MADE)
    context = multiprocessing.get_context("fork")
    with run.locked():
        worker = context.Process(target=time.sleep, args=(30,))
        worker.start()
    try:
        check = f"from coterie.observe.run_dir import RunDir\nwith RunDir.open({str(run.path)!r}).locked(): print('ok')"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
        assert done.stdout == "ok\n", done.stderr
    finally:
        worker.kill()
        worker.join()
