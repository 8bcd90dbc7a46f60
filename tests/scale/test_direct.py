"""Weights sent straight from one process to another: as they were, whoever is late, gone or of another shape."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_ray import EVERY, ONCE, RAY, tickets
from test_workers import TINY, same

from coterie.api import start
from coterie.errors import PolicyError, RecipeError
from coterie.recipe import resolve
from coterie.scale import direct, pool, weights
from coterie.scale.direct import Line, Pair, Snapshot, Switchboard, Where, difference, layout
from coterie.scale.maker import Worker
from coterie.scale.weights import DeviceSum, HostSum
from coterie.sections import Scale

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


def odd(seed: int) -> State:
    """Weights of odd shapes and of many types; the large ones, those of 64 bytes, travel alone."""
    torch.manual_seed(seed)
    return {
        "matrix": torch.randn(3, 5),
        "half": torch.randn(7).bfloat16(),
        "none": torch.randn(0, 4),
        "number": torch.randn(()),
        "large": torch.randn(4, 9),
        "across": torch.randn(6, 8).t(),
        "count": torch.randint(0, 99, (3,)),
        "flag": torch.rand(5) > 0.5,
        "odd and large": torch.randn(67).bfloat16(),
    }


def empty() -> State:
    return {name: torch.zeros_like(value) for name, value in odd(0).items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", 64)
    monkeypatch.setattr(weights, "BUCKET", 48)


@pytest.fixture
def lines(small: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Line]]:
    """Makes lines, each of a store of its own."""
    made = []

    def make(patience: float = 60.0) -> Line:
        monkeypatch.setattr(direct, "PATIENCE", patience)
        made.append(Switchboard("127.0.0.1").line("gloo", CPU))
        return made[-1]

    yield make
    for line in made:
        line.close()


def taken(state: State) -> Snapshot:
    snapshot = Snapshot()
    snapshot.take(state)
    return snapshot


def joined(line: Line) -> Pair:
    return Pair(line.place, 1, "127.0.0.1", CPU, threading.Event())


def free(snapshot: Snapshot) -> None:
    """Wait until nobody reads it."""
    until = time.monotonic() + 60
    while snapshot.read:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_weights_arrive_as_they_were(lines: Callable[..., Line]) -> None:
    """Two workers, each through a line of its own, the second late; three times, in place."""
    snapshot, both, states = Snapshot(), [lines(), lines()], [empty(), empty()]
    pairs: list[Pair] = []
    for number in range(3):
        sent = odd(number)
        snapshot.take(sent)
        kept = snapshot.state["matrix"].data_ptr()
        for line in both:
            line.send(number, snapshot)
        for each in sent.values():
            each.zero_()  # the trainer goes on
        for which, state in enumerate(states):
            versions = {name: value._version for name, value in state.items()}
            places = {name: value.data_ptr() for name, value in state.items()}
            if number == 0:
                time.sleep(0.2 * which)
                pairs.append(joined(both[which]))
            pairs[which].receive(number, state)
            for name, value in odd(number).items():
                assert torch.equal(value, state[name]) and state[name].data_ptr() == places[name]
                assert state[name]._version > versions[name] or not value.numel()  # engines look at that
        free(snapshot)
        assert snapshot.state["matrix"].data_ptr() == kept
    assert [line.error for line in both] == [None, None]


def test_what_was_sent_is_compared(lines: Callable[..., Line]) -> None:
    """The number of the weights and the checksum."""
    line = lines()
    line.send(4, taken(odd(0)))
    pair = joined(line)
    with pytest.raises(RuntimeError, match="did not arrive as they were sent"):
        pair.receive(5, empty())
    line.send(6, snapshot := taken(odd(1)))
    other = odd(1)
    arriving = pair._arriving

    def spoiled(state: State) -> Iterator[torch.Tensor]:
        for flat in arriving(state):
            flat[0] ^= 1
            yield flat

    pair._arriving = spoiled  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="did not arrive as they were sent"):
        pair.receive(6, other)
    free(snapshot)


def test_a_worker_that_never_comes(lines: Callable[..., Line]) -> None:
    line, snapshot = lines(0.3), taken(odd(0))
    line.send(0, snapshot)
    free(snapshot)
    assert line.error == "the worker did not come to take the weights"


def test_one_that_is_waited_for_does_not_hold_up_the_end(lines: Callable[..., Line]) -> None:
    line, snapshot = lines(60.0), taken(odd(0))
    line.send(0, snapshot)
    began = threading.Thread(target=line.close)
    began.start()
    free(snapshot)
    began.join()
    assert line.error == "the worker did not come to take the weights"


def test_a_trainer_that_leaves(lines: Callable[..., Line]) -> None:
    """The worker is told at once, and knows why."""
    line = lines()
    line.send(0, taken(odd(0)))
    pair, state = joined(line), empty()
    pair.receive(0, state)
    with ThreadPoolExecutor(1) as other:
        waiting: Future[None] = other.submit(pair.receive, 1, state)
        line.close()
        with pytest.raises(RuntimeError, match=r"[Cc]onnection"):
            waiting.result(60)


def test_a_worker_that_hangs(lines: Callable[..., Line]) -> None:
    """It came, and then takes nothing: the trainer gives up."""
    line, snapshot = lines(), taken({"a": torch.ones(2**24)})
    line.send(0, snapshot)
    pair = joined(line)
    pair.receive(0, {"a": torch.zeros(2**24)})
    free(snapshot)
    assert line.error is None and line._pair is not None
    line._pair.patience = timedelta(seconds=0.2)
    line.send(1, snapshot)
    free(snapshot)
    assert line.error == "Timed out waiting 200ms for send operation to complete"


DIES = """
import os, sys, threading, torch
from coterie.scale import direct
torch.set_num_threads(1)
port, number = map(int, sys.argv[1:])
place = direct.Place("127.0.0.1", port, number, "gloo", 60.0)
pair = direct.Pair(place, 1, "127.0.0.1", torch.device("cpu"), threading.Event())
state = {"a": torch.zeros(2**23), "b": torch.zeros(2**23)}
for flat in pair._arriving(state):
    os.kill(os.getpid(), 9)
"""


def test_a_worker_that_dies_on_the_way(lines: Callable[..., Line]) -> None:
    """Between two buckets; the trainer's other lines go on."""
    line, snapshot = lines(), taken({"a": torch.ones(2**23), "b": torch.ones(2**23)})
    line.send(0, snapshot)
    command = [sys.executable, "-c", DIES, str(line.place.port), str(line.place.number)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    free(snapshot)
    assert line.error is not None and "onnection" in line.error
    another = lines()
    another.send(0, taken(odd(0)))
    joined(another).receive(0, state := empty())
    assert torch.equal(state["large"], odd(0)["large"])


def test_other_weights_are_refused() -> None:
    sent = layout({"w": torch.zeros(2, 3), "v": torch.zeros(4)})
    assert difference(sent, sent) is None
    assert difference(sent, sent[:1]) == "the trainer sends 2 weights, and there are 1 here"
    worker = Worker()
    state = {"w": torch.zeros(2, 3), "v": torch.zeros(4, dtype=torch.bfloat16)}
    worker.run = SimpleNamespace(policy=SimpleNamespace(state_dict=lambda: state))  # type: ignore[assignment]
    with pytest.raises(PolicyError, match=r"sends v \(float32 \[4\]\), and here is v \(bfloat16 \[4\]\)"):
        worker.receive(direct.Place("127.0.0.1", 1, 1, "gloo", 1.0), 0, 0, sent)


def test_a_snapshot_is_not_written_over_while_it_is_read() -> None:
    snapshot = taken(odd(0))
    assert not snapshot.read
    snapshot.reads(1)
    assert snapshot.read
    state = odd(1) | {"matrix": torch.randn(3, 6)}
    snapshot.take(state)  # other shapes have other memory
    assert all(torch.equal(snapshot.state[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", [HostSum, DeviceSum])
def test_a_checksum_notices(kind: type[HostSum | DeviceSum], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bit, any order, and not how the bytes are cut where cuts are at words."""
    monkeypatch.setattr(weights, "_PIECE", 32)
    data = torch.randint(0, 256, (99,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def summed(*parts: torch.Tensor) -> int:
        total = kind()
        for part in parts:
            total.update(part)
        return total.intdigest()

    whole = summed(data)
    assert 0 <= whole < 2**64 and summed(data[:40], data[40:]) == whole
    found = {whole, summed(data.roll(8)), summed(data[:-8])}
    for bit in range(0, 8 * len(data), 7):
        other = data.clone()
        other[bit // 8] ^= 1 << bit % 8
        found.add(summed(other))
    both = data.clone()
    both[[7, 15]] ^= 128  # the highest bits of two words, which a plain sum would lose
    found.add(summed(both))
    turned = data.clone()
    turned[:8] ^= 255  # all bits of a word, which mixing with its sign would lose
    found.add(summed(turned))
    assert len(found) == 5 + len(range(0, 8 * len(data), 7))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="nccl needs two GPUs, and they are not here")
def test_weights_stay_on_the_gpus(small: None) -> None:
    here, there = torch.device("cuda:0"), torch.device("cuda:1")
    line = Switchboard("127.0.0.1").line("nccl", here)
    line.send(0, taken({name: value.to(here) for name, value in odd(0).items()}))
    state = {name: value.to(there) for name, value in empty().items()}
    Pair(line.place, 1, "127.0.0.1", there, threading.Event()).receive(0, state)
    for name, value in odd(0).items():
        assert torch.equal(value, state[name].cpu())


def test_who_gets_weights_straight() -> None:
    watched: Any = object.__new__(pool.Pool)
    watched.here, watched.failed = "here", 0
    there, here = (SimpleNamespace(kind="roll", where=Where(node, None)) for node in ("there", "here"))
    loading, grades = (
        SimpleNamespace(kind="roll", where=None),
        SimpleNamespace(kind="grade", where=Where("there", None)),
    )

    def straight(sync: str) -> list[bool]:
        watched.scale = Scale(engine="ray", sync=sync)
        return [watched._is_direct(actor) for actor in (there, here, loading, grades)]

    assert straight("auto") == [True, False, False, False]
    assert straight("objects") == [False] * 4
    assert straight("direct") == [True, True, True, False]
    watched.failed = pool.FAILURES
    assert straight("direct") == [False] * 4


def test_it_is_of_ray() -> None:
    with pytest.raises(RecipeError, match=r"scale\.sync is of scale\.engine=ray"):
        resolve(overrides=[*TINY, "scale.sync=direct"])


FRAIL = """
from coterie.pieces import strategy
from coterie.rollout.strategies.plain import plain
from coterie.scale import direct, weights

weights.BUCKET = 256  # so that there is something between two buckets
whole = direct.Pair._arriving


def broken(self, state):
    for number, flat in enumerate(whole(self, state)):
        if number == 2 and WHEN:
            WHAT
        yield flat


direct.Pair._arriving = broken


@strategy()
def NAME(policy, prompts, seeds, sampling, entropy, step, ended=None, world=None):
    return plain(policy, prompts, seeds, sampling, entropy, ended, world)
"""


def frail(folder: Path, name: str, when: str, what: str) -> str:
    """A strategy in whose workers something happens between two buckets."""
    text = FRAIL.replace("NAME", name).replace("WHEN", when).replace("WHAT", what)
    (folder / f"{name}.py").write_text(ONCE + text)
    return f"rollout.strategy={folder}/{name}.py:{name}"


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the strategy changes in this process is put back."""
    monkeypatch.setattr(direct.Pair, "_arriving", direct.Pair._arriving)
    monkeypatch.setattr(weights, "BUCKET", weights.BUCKET)


def without(path: Path, rows: list[dict[str, float]], name: str) -> list[float | None]:
    found = [row.pop(name, None) for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_as_one_process(cluster: str, tmp_path: Path, unpatched: None) -> None:
    """One rollout worker, to which the second weights do not get through: those come another way."""
    second = 'not once("first") and once("second")'
    tiny = [*TINY, *EVERY, frail(tmp_path, "refuses", second, "raise RuntimeError('no')")]
    one = start(resolve(overrides=tiny), tmp_path / "one", quiet=True)
    run = start(resolve(overrides=[*tiny, *RAY, "scale.sync=direct"]), tmp_path / "run", quiet=True)
    assert without(run.path, run.metrics, "workers/sync_fallbacks") == [None, None, 1.0, None]
    same(one.path, run.path)
    assert tickets(run.path) == tickets(one.path) == list(range(12))


@pytest.mark.cluster
def test_as_one_process_through_deaths(cluster: str, tmp_path: Path, unpatched: None) -> None:
    """Two rollout workers, of which one dies between two buckets."""
    tiny = [*TINY, *EVERY, frail(tmp_path, "dies", 'once("died")', "os._exit(1)")]
    one = start(resolve(overrides=tiny), tmp_path / "one", quiet=True)
    run = start(
        resolve(overrides=[*tiny, *RAY, "scale.sync=direct", "scale.rollout_workers=2"]), tmp_path / "run", quiet=True
    )
    assert (tmp_path / "died").exists()
    assert sum(n or 0.0 for n in without(run.path, run.metrics, "workers/replaced")) == 1.0
    assert not any(without(run.path, run.metrics, "workers/sync_fallbacks"))
    same(one.path, run.path)
    assert tickets(run.path) == tickets(one.path) == list(range(12))
