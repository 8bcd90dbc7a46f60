"""Checkpoints appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import CheckpointStore, is_complete, load_state, save_state
from coterie.errors import RunError

WRITER = """
import sys
from pathlib import Path
from coterie.checkpoint import CheckpointStore

def write(step):
    def inner(folder):
        (folder / "policy").mkdir()
        for i in range(6):
            (folder / "policy" / f"part{i}").write_bytes(bytes([step % 256]) * 60_000)
        (folder / "state").write_text(str(step))
    return inner

store = CheckpointStore(sys.argv[1])
start = int((store.latest() or Path("step--1")).name[5:]) + 1
print("ready", flush=True)
for step in range(start, 10**6):
    store.save(step, write(step))
"""


def writer(value):
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_bytes(value * 1000)
        (folder / "state").write_bytes(value)

    return write


def test_keeps_the_newest_and_finds_the_latest(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    paths = [store.save(step, writer(b"x")) for step in (0, 10, 9_000_000)]
    assert store.latest() == paths[-1]
    assert sorted(p.name for p in store.directory.iterdir()) == ["step-000010", "step-9000000"]


def test_a_save_of_the_same_step_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, writer(b"a"))
    path = store.save(1, writer(b"b"))
    assert (path / "state").read_bytes() == b"b"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_what_a_save_was_replacing_when_it_stopped_is_found(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, writer(b"a"))
    path.rename(path.with_name("step-000001.old"))
    assert store.latest() == tmp_path / "step-000001.old"
    store.save(1, writer(b"b"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "manifest", "no manifest", "empty"])
def test_damaged_checkpoints_are_passed_over_and_set_aside(tmp_path, damage):
    store = CheckpointStore(tmp_path)
    good, torn = store.save(1, writer(b"a")), store.save(2, writer(b"b"))
    weights, manifest = torn / "policy" / "weights", torn / "manifest.json"
    match damage:
        case "missing":
            weights.unlink()
        case "short":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "flipped":
            weights.write_bytes(b"c" + weights.read_bytes()[1:])
        case "manifest":
            manifest.write_text(manifest.read_text()[:20])
        case "no manifest":
            manifest.unlink()
        case "empty":
            manifest.write_text("[]")
    (tmp_path / ".tmp-step-000003-1").mkdir()
    (tmp_path / "step-notes.txt").write_text("mine")
    assert store.latest() == good
    assert store.ignored == [torn]
    assert store.clean() == [tmp_path / "damaged-step-000002"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-000002", "step-000001", "step-notes.txt"]
    assert store.ignored == [torn]
    assert store.latest() == good
    assert store.ignored == []


def edited(checkpoint: Path) -> bytes:
    (checkpoint / "state").write_bytes(b"edited")
    return (checkpoint / "policy" / "weights").read_bytes()


def test_cleaning_never_deletes_the_only_checkpoints_there_are(tmp_path):
    store = CheckpointStore(tmp_path)
    kept = {path: edited(path) for path in (store.save(1, writer(b"a")), store.save(2, writer(b"b")))}
    with pytest.raises(RunError, match=r"files of step-000002 differ.*\n.*put its files back"):
        store.clean()
    assert {path: (path / "policy" / "weights").read_bytes() for path in kept} == kept


def test_one_damaged_checkpoint_does_not_replace_another_that_was_set_aside(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, writer(b"a"))
    for value in (b"b", b"c"):
        edited(store.save(2, writer(value)))
        store.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-000002", "damaged-step-000002-2", "step-000001"]


def test_a_damaged_checkpoint_does_not_cost_a_good_one_its_place(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, writer(b"a"))
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000009")
    edited(tmp_path / "step-000009")
    store.clean()
    good = store.save(2, writer(b"b"))
    assert store.latest() == good
    assert not (tmp_path / "step-000001").exists()


def test_a_checkpoint_loses_its_name_before_its_files(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, writer(b"a"))

    def killed(folder, ignore_errors=False):
        if folder.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("coterie.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, writer(b"b"))
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-step-000001-removed", "step-000002"]
    store.clean()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]


def test_kill_9_at_any_moment_leaves_a_complete_latest(tmp_path):
    rng = random.Random(0)
    store, last = CheckpointStore(tmp_path), -1
    leftovers = 0
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 10  # at least one more checkpoint, so that every round can move on
            while time.monotonic() < deadline and not (tmp_path / f"step-{last + 1:06d}").exists():
                time.sleep(0.0005)
            time.sleep(rng.uniform(0.0, 0.03))
            child.send_signal(signal.SIGKILL)
            child.wait()
        latest = store.latest()
        assert latest is not None
        assert store.ignored == []
        step = int(latest.name[5:])
        assert step > last
        assert (latest / "state").read_text() == str(step)
        assert all((latest / "policy" / f"part{i}").read_bytes() == bytes([step % 256]) * 60_000 for i in range(6))
        last = step
        leftovers += any(tmp_path.glob(".tmp-*"))
        store.clean()
        assert not list(tmp_path.glob(".tmp-*"))
    assert leftovers, "no kill fell into a save: the test proves nothing"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from coterie.checkpoint import CheckpointStore, save_state
from coterie.errors import RunError

big = torch.zeros(200_000)
writers = {
    "python": lambda folder: (folder / "blob").write_bytes(b"x" * 800_000),
    "torch": lambda folder: save_state(folder / "state.pt", {"weights": big}),
    "safetensors": lambda folder: save_file({"weights": big}, folder / "model.safetensors"),
}
store = CheckpointStore(sys.argv[1])
store.save(20, lambda folder: (folder / "state").write_text("fine"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save(40, writers[sys.argv[2]])
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("kind", ["python", "torch", "safetensors"])
def test_a_full_disk_says_that_the_previous_checkpoint_is_intact(tmp_path, kind):
    folder = tmp_path / "run" / "checkpoints"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(folder), kind], capture_output=True, text=True)
    assert done.returncode == RunError.exit_code, done.stderr
    assert "step 40 could not be written" in done.stdout
    assert "File too large" in done.stdout
    assert "step-000020 is intact" in done.stdout
    assert f"coterie resume {folder.parent}" in done.stdout
    assert [p.name for p in folder.iterdir()] == ["step-000020"]
    assert is_complete(folder / "step-000020")


def test_a_directory_that_cannot_be_written_is_an_error_without_an_earlier_checkpoint(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(RunError, match="no earlier checkpoint"):
        CheckpointStore(tmp_path / "checkpoints").save(1, writer(b"x"))


def test_a_bug_in_the_writer_is_not_dressed_up_and_leaves_nothing(tmp_path):
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        CheckpointStore(tmp_path).save(1, broken)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_lists_every_file(tmp_path):
    path = CheckpointStore(tmp_path).save(7, writer(b"x"))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {"policy/weights", "state"}


def test_state_comes_back_as_it_was(tmp_path):
    state = {
        "optimizer": {
            "state": {0: {"m": torch.arange(3.0), "step": torch.tensor(2)}},
            "groups": [{"betas": (0.9, 0.99)}],
        },
        "flags": [True, None, "text", 1, 0.1],
    }
    save_state(tmp_path / "state.pt", state)
    back = load_state(tmp_path / "state.pt")
    assert torch.equal(back["optimizer"]["state"][0].pop("m"), state["optimizer"]["state"][0].pop("m"))
    assert back["optimizer"]["state"][0].pop("step") == 2
    state["optimizer"]["state"][0].pop("step")
    assert back == state
    assert isinstance(back["optimizer"]["groups"][0]["betas"], tuple)


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"x": Evil()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "executed").exists()
