"""Runs exchange rollouts through a folder: what they learn from each other's, and a store that fails for a while."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from coterie.api import resume, start
from coterie.build import build
from coterie.errors import RecipeError, RunError
from coterie.recipe import resolve
from coterie.rollout.place import Place
from coterie.rollout.shared_store import Shared, SharedStore

TINY = [
    "task={sort: {digits: 2, train: 40, held_out: 8}}", "threads=1", "steps=2", "draw.prompts=4",
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "rollout.group_size=4", "rollout.max_tokens=4",
    "evaluation.prompts=8", "log.rollouts_every=1", "checkpoint.every=1",
]  # fmt: skip
GROUP = Shared({"prompt": "31=", "digits": "31"}, ("13", "31", "11", "33"), (True, True, True, False))


class Failing(MemoryFileSystem):
    """Files in memory that cannot be reached for the first `down` calls."""

    protocol = "failing"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    down = 0

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._fail()
        return super().ls(path, detail, **kwargs)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._fail()
        return super().open(path, mode, **kwargs)

    def _fail(self) -> None:
        if Failing.down > 0:
            Failing.down -= 1
            raise OSError(errno.ECONNREFUSED, "connection refused")


@pytest.fixture
def failing() -> Any:
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.store.clear()
    return Failing


def test_groups_go_from_one_to_the_other(tmp_path: Path) -> None:
    mine, theirs = (SharedStore(Place(str(tmp_path / "meeting")), name) for name in ("a", "b"))
    mine.put(0, [GROUP])
    mine.put(1, [GROUP, GROUP])
    assert theirs.new() == [GROUP] * 3 and theirs.new() == [] and mine.new() == []
    theirs.put(0, [GROUP])
    (tmp_path / "meeting/.c-0").write_bytes(b"half a file")
    assert mine.new() == [GROUP]


def test_an_outage_is_waited_out(failing: Any) -> None:
    said: list[str] = []
    store = SharedStore(Place("failing://meeting", 60.0, 0.001, said.append), "a")
    failing.down = 2
    store.put(0, [GROUP])
    assert len(said) == 2 and "failing://meeting takes nothing" in said[0] and "connection refused" in said[0]
    failing.down = 3
    assert SharedStore(Place("failing://meeting", 60.0, 0.001, said.append), "b").new() == [GROUP]
    assert len(said) == 5 and "does not answer" in said[-1] and store.place.waited > 0
    failing.down = 10**6
    with pytest.raises(RunError, match=r"does not answer, after .*connection refused(.|\n)*coterie resume"):
        SharedStore(Place("failing://meeting", 0.02, 0.001, said.append), "c").new()
    failing.down = 0


def test_a_meeting_in_redis(redis_server: Callable[[], str]) -> None:
    """A real server. One that is begun anew is waited for, and what was shared is there."""
    redis = pytest.importorskip("redis")
    url, said = redis_server(), []
    mine, theirs = (SharedStore(Place(url, 60.0, 0.05, said.append), name) for name in ("a", "b"))
    mine.put(0, [GROUP])
    mine.put(1, [GROUP, GROUP])
    assert theirs.new() == [GROUP] * 3 and theirs.new() == [] and mine.new() == []
    redis_server()
    assert SharedStore(Place(url, 60.0, 0.05, said.append), "c").new() == [GROUP] * 3
    theirs.put(0, [GROUP])
    assert mine.new() == [GROUP]
    assert SharedStore(Place(f"{url}-other", 60.0, 0.05), "d").new() == []
    client = redis.Redis.from_url(url.partition("#")[0])
    assert client.ttl("meeting:a-00000000.parquet") > 6 * 86400
    client.delete("meeting:a-00000000.parquet")
    assert SharedStore(Place(url, 60.0, 0.05), "e").new() == [GROUP] * 3  # passed over
    assert client.smembers("meeting") == {b"a-00000001.parquet", b"b-00000000.parquet"}


def test_a_redis_that_does_not_answer_is_an_error() -> None:
    pytest.importorskip("redis")
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"redis://me:secret@127.0.0.1:{taken.getsockname()[1]}/0"
        with pytest.raises(RunError, match=r"takes nothing, after(.|\n)*coterie resume") as caught:
            SharedStore(Place(url, 0.02, 0.001, said.append), "a").put(0, [GROUP])
    assert said and "trying again" in said[0] and "secret" not in said[0] + str(caught.value)
    with pytest.raises(RunError, match="HOST:PORT"):
        SharedStore(Place("redis://127.0.0.1:port"), "a").new()


def test_redis_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(RunError, match=r"coterie\[redis\]"):
        SharedStore(Place("redis://127.0.0.1"), "a").new()


def test_a_run_that_is_alone_is_plain(tmp_path: Path) -> None:
    recipe = [*TINY, f"rollout.strategy={{swarm: {{path: {tmp_path}/meeting}}}}"]
    runs = [start(resolve(overrides=o), tmp_path / n, quiet=True) for n, o in (("alone", recipe), ("plain", TINY))]
    states = [r.policy.state_dict() for r in runs]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert runs[0].last["swarm/external_share"] == 0.0
    assert len(list((tmp_path / "meeting").glob("*.parquet"))) == 2


def test_external_groups_are_trained_on_as_ones_own(tmp_path: Path) -> None:
    """Two groups of the four are the other run's, graded here, with the log-probs this policy gives them; those that
    are all wrong are left; a resumed run goes on with what it had."""
    strategy = f"rollout.strategy={{swarm: {{path: {tmp_path}/meeting, external: 2}}}}"
    recipe = [*TINY, strategy, "evaluation.every=1"]
    task = build(resolve(overrides=recipe)).task
    rows = [task.train[i] for i in range(5)]
    dead = Shared(rows[0], ("", "1", "2", "3"), (True,) * 4)
    groups = [Shared(row, (task.reference(row), "1", "2", "3"), (True, True, True, False)) for row in rows]
    SharedStore(Place(str(tmp_path / "meeting")), "other").put(0, [dead, *groups, GROUP])
    run = start(resolve(overrides=recipe), tmp_path / "run", quiet=True)
    # what came in in the first step: 2 external groups in each of the next, each with one right answer of four
    assert [row["swarm/external_share"] for row in run.metrics[1:]] == [0.0, 0.5]
    assert run.last["accuracy"] >= 2 / 16
    assert run.last["ratio/max_abs_log"] < 1e-3
    more = resume(run.path, steps=5, quiet=True)
    # five in all: neither the one whose answers are all wrong nor the one of another task was taken
    assert [row["swarm/external_share"] for row in more.metrics[3:]] == [0.5, 0.25, 0.0]


def test_a_swarm_needs_a_place() -> None:
    with pytest.raises(RecipeError, match=r"swarm\.path"):
        resolve(overrides=[*TINY, "rollout.strategy=swarm"])
