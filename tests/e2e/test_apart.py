"""Agents trained by runs of their own, which exchange rollouts and weights: they are those of one process, bit for bit,
whoever is killed and when."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.apart import Apart
from coterie.api import start
from coterie.build import build
from coterie.errors import RecipeError, RunError
from coterie.recipe import Recipe, resolve
from coterie.rollout.batch_file import written
from tests.e2e.processes import Command
from tests.e2e.test_policies import same, weights
from tests.e2e.test_resume import metrics

TINY = [
    "task=delegation", "model={init: {layers: 1, width: 16, heads: 2, context: 24}}", "threads=1", "steps=6",
    "policies={main: {}, left: {}, right: {}}", "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=16",
    "evaluation={every: 3, prompts: 4, greedy: false}", "log.rollouts_every=0", "checkpoint={every: 2, keep: 2}",
    "optimizer.lr=1e-2", "warm_start={steps: 4, batch: 8, lr: 1e-2}", "method=m-grpo",
]  # fmt: skip
CASES = {
    "each warms up by itself": ([], ["main", "left,right"]),
    "who plays teaches, and draws again": (
        ["warm_start.stop_at=1", "warm_start.check_every=2", "policies.main.selection.filters=[dynamic_sampling]",
         "policies.right.optimizer=null", "update.staleness=1"],
        ["main", "left"],
    ),
}  # fmt: skip
LONG = ["steps=16", "checkpoint.every=4"]


def of(folder: Path, names: str, *more: str) -> list[str]:
    return [*TINY, f"apart.path={folder}/meeting", f"apart.train=[{names}]", "apart.patience=300", *more]


def begin(folder: Path, names: str, *more: str) -> Command:
    """The run of some agents, begun or gone on with."""
    return Command("train", *of(folder, names, *more), "-q", "--resume", "-o", str(folder / names))


def own(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What is said of an agent, but for evaluations."""
    return [{k: v for k, v in row.items() if k.startswith(f"agent/{name}/") and "/eval/" not in k} for row in rows]


def evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "/eval/" in k} for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_runs_apart_are_one_process(case: str, cli: Callable, tmp_path: Path) -> None:
    more, runs = CASES[case]
    commands = [begin(tmp_path, names, *more) for names in runs]
    one = start(resolve(overrides=[*TINY, *more]), tmp_path / "one", quiet=True)
    assert [c.wait(300) for c in commands] == [0] * len(runs), "".join(c.said.read_text() for c in commands)
    whole = metrics(one.path)
    for names in runs:
        found = metrics(tmp_path / names)
        assert found[-1]["step"] == 6 and all(row.get("apart/versions_late", 0.0) == 0.0 for row in found)
        for name in names.split(","):
            assert same(weights(tmp_path / names, 6, name), weights(one.path, 6, name))
            assert not same(weights(one.path, 4, name), weights(one.path, 6, name))
            assert own(found, name) == own(whole, name) and own(found, name)[-1]
    assert evaluations(metrics(tmp_path / "main")) == evaluations(whole)
    assert evaluations(whole)[-1] and not any(evaluations(metrics(tmp_path / runs[1])))
    steps = [int(f.name.split("-")[1]) for f in (tmp_path / "meeting").glob("batch-*")]
    assert min(steps) == 2 and max(steps) == 5  # what a checkpoint that is there may ask for
    assert {f.name for f in (tmp_path / "meeting").glob("weights-*")} == {
        f"weights-{name}-00000006.safetensors" for name in runs[1].split(",")
    }
    assert json.loads(cli("eval", str(tmp_path / "main"), "--json").out) == evaluations(whole)[-1]
    told = cli("eval", str(tmp_path / runs[1]))
    assert told.code == 2 and "evaluate the run that plays" in told.err
    assert cli("export", str(tmp_path / runs[1]), "models").code == 0
    assert {f.name for f in Path("models").iterdir()} == set(runs[1].split(","))


def test_killed_at_any_moment_nothing_is_lost_or_trained_on_twice(tmp_path: Path) -> None:
    rng, runs = random.Random(3), ["main", "left", "right"]
    one = start(resolve(overrides=[*TINY, *LONG]), tmp_path / "one", quiet=True)
    commands = {names: begin(tmp_path, names, *LONG) for names in runs}
    killed = 0
    for names in ("main", "left", "main", "right"):
        before, end = len(_rows(tmp_path / names)), time.monotonic() + 60
        while not commands[names].over() and len(_rows(tmp_path / names)) < before + rng.randrange(1, 5):
            assert time.monotonic() < end
            time.sleep(rng.uniform(0.001, 0.01))
        killed += not commands[names].over()
        commands[names].kill()
        commands[names] = begin(tmp_path, names, *LONG)
    assert killed >= 2
    assert [c.wait(300) for c in commands.values()] == [0] * 3, "".join(c.said.read_text() for c in commands.values())
    whole = metrics(one.path)
    for name in runs:
        found = metrics(tmp_path / name)
        assert [row["step"] for row in found] == list(range(17))  # every batch once
        assert own(found, name) == own(whole, name)
        assert same(weights(tmp_path / name, 16, name), weights(one.path, 16, name))
        a, b = (
            torch.load(r / f"checkpoints/step-000016/policies/{name}/state.pt") for r in (tmp_path / name, one.path)
        )
        assert str(a["optimizer"]) == str(b["optimizer"]) and a["version"] == b["version"] and a["drawn"] == b["drawn"]
    assert evaluations(metrics(tmp_path / "main"))[-1] == evaluations(whole)[-1]


def _rows(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_bounded_staleness(tmp_path: Path) -> None:
    commands = [begin(tmp_path, names, "apart.staleness=2", "steps=12") for names in ("main", "left", "right")]
    assert [c.wait(300) for c in commands] == [0] * 3, "".join(c.said.read_text() for c in commands)
    for name in ("main", "left", "right"):
        late = [row["apart/versions_late"] for row in metrics(tmp_path / name)[1:]]
        assert len(late) == 12 and max(late) <= 2 and late[0] == 0
    corrected = {name: "mismatch/k1" in " ".join(metrics(tmp_path / name)[-1]) for name in ("main", "left")}
    assert corrected == {"main": False, "left": True}  # what may be of older weights, and nothing else


def test_who_is_alone_waits_and_says_for_whom(tmp_path: Path) -> None:
    for names, says in (
        ("left", "no rollouts of step 0 came in"),
        ("main", "no weights of right after 0 steps came in"),
    ):
        with pytest.raises(RunError, match=rf"{says} .*(.|\n)*the last checkpoint of this one is intact"):
            start(resolve(overrides=of(tmp_path, names, "apart.patience=0.05")), tmp_path / names, quiet=True)
    assert json.loads((tmp_path / "left/status.json").read_text())["state"] == "failed"
    more = ("apart.patience=0.05", "warm_start.stop_at=0.5")
    with pytest.raises(RunError, match="no weights of right after 0 steps"):
        start(resolve(overrides=of(tmp_path, "right", *more)), tmp_path / "right", quiet=True)


def test_a_run_that_waits_can_be_stopped(tmp_path: Path) -> None:
    stage = _stage(resolve(overrides=of(tmp_path, "left")))
    stage.stopping = lambda: True
    with pytest.raises(KeyboardInterrupt):
        stage.rollouts(stage.lead, 0, 0, 4)


def _stage(recipe: Recipe) -> Apart:
    stage = build(recipe).stage
    assert isinstance(stage, Apart)
    return stage


def test_a_place_where_others_have_met_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    for names, file, says in (
        ("main", "batch-00000003-0-4.parquet", "rollouts of another run lie there"),
        ("left,right", "weights-right-00000000.safetensors", "weights of right of another run lie there"),
    ):
        (tmp_path / "meeting" / file).touch()
        with pytest.raises(RunError, match=says):
            start(resolve(overrides=of(tmp_path, names)), tmp_path / names, quiet=True)
    (tmp_path / "meeting/batch-00000003-0-4.parquet").unlink()
    taught = resolve(overrides=of(tmp_path, "main", "warm_start.stop_at=0.5"))
    with pytest.raises(RunError, match="weights of right of another run lie there"):
        _stage(taught).claim()
    _stage(resolve(overrides=of(tmp_path, "right", "warm_start.stop_at=0.5"))).claim()  # handed out, perhaps


def test_runs_of_another_recipe_are_told_apart(tmp_path: Path) -> None:
    stage, recipe = _stage(resolve(overrides=of(tmp_path, "left"))), resolve(overrides=of(tmp_path, "main", "seed=1"))
    other = _stage(recipe)
    name = "batch-00000000-0-4.parquet"
    stage.place.put(name, written({}, {"agreed": other._agreed, "step": 0, "versions": {"left": 0}}))
    with pytest.raises(RunError, match=r"seed is 0 here and 1 in the run that plays(.|\n)*only apart.train differs"):
        stage.rollouts(stage.lead, 0, 0, 4)
    stage.place.put(name, b"PAR1 but no more")
    with pytest.raises(RunError, match="no batch of rollouts"):
        stage.rollouts(stage.lead, 0, 0, 4)
    stage.learned(3)
    with pytest.raises(RunError, match="seed is 1 here and 0 in the run that trains left"):
        other._load(other.copies[0], 3)
    stage.place.put("weights-left-00000004.safetensors", b"what?")
    with pytest.raises(RunError, match="no weights of a run"):
        other.gather(4)


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    stage = _stage(resolve(overrides=of(tmp_path, "left")))
    stage.place.put("batch-00000007-0-4.parquet", b"")
    with pytest.raises(RunError, match="the rollouts of step 3 are gone, and those of step 7 are there"):
        stage.rollouts(stage.lead, 3, 0, 4)


def test_other_data_is_told_apart(tmp_path: Path) -> None:
    stage = _stage(resolve(overrides=of(tmp_path, "left")))
    playing = build(resolve(overrides=[*TINY, "task={delegation: {seed: 9}}"])).stage
    assert playing is not None
    playing.rollouts(playing.lead, 0, 0, 4)
    (tables,) = playing._played.values()
    about = {"agreed": stage._agreed, "step": 0, "versions": {"left": 0}}
    stage.place.put("batch-00000000-0-4.parquet", written(tables, about))
    with pytest.raises(RunError, match="prompts of left are others here"):
        stage.rollouts(stage.lead, 0, 0, 4)


def test_a_meeting_in_redis(redis_server: Callable[[], str], tmp_path: Path) -> None:
    """One process after the other: the place alone is between them."""
    pytest.importorskip("redis")
    url = redis_server()
    plays, left, right = (
        _stage(resolve(overrides=[*TINY, f"apart.path={url}", f"apart.train=[{n}]"])) for n in ("main", "left", "right")
    )
    left.learned(0)
    right.learned(0)
    assert plays.rollouts(plays.lead, 0, 0, 4) is not None
    (made,) = plays._played.values()
    for stage in (left, right):
        table, want = stage.rollouts(stage.lead, 0, 0, 4), made.get(stage.lead.name)  # None for one nobody called
        assert table is want or (
            table is not None and want is not None and torch.equal(table["logp_old"], want["logp_old"])
        )
        stage.learned(1)
    assert {name for name in plays.place.names() if "weights" in name} == {
        f"weights-{name}-00000001.safetensors" for name in ("left", "right")
    }


def test_the_command_line(cli: Callable, tmp_path: Path) -> None:
    numbers = json.loads(cli("plan", *of(tmp_path, "main"), "--json").out)["derived"]
    assert numbers["policies"] == "main (m-grpo), left (m-grpo, trained elsewhere), right (m-grpo, trained elsewhere)"
    assert "this run trains main, plays and evaluates" in numbers["apart"] and str(tmp_path) in numbers["apart"]
    numbers = json.loads(cli("plan", *of(tmp_path, "right"), "--json").out)["derived"]
    assert "this run trains right on what the run of main plays" in numbers["apart"]


REFUSED = {
    "no policy is named 'mian'": ["apart.train=[mian]"],
    "policy 'left' has no optimizer and is not trained": ["apart.train=[left]", "policies.left.optimizer=null"],
    "'main', the first, is not trained": ["apart.train=[left]", "policies.main.optimizer=null"],
    "this run trains every policy": ["apart.train=[main, left, right]"],
    "apart is for several policies": ["apart.train=main", "task=sort", "policies=null"],
    "draws again, and 'left' is trained on what": [
        "apart.train=[left]", "policies.left.selection.filters=[dynamic_sampling]",
    ],
    "apart.path is set, and not which policies": [],
    "apart.staleness is of runs that meet": ["apart.path=null", "apart.staleness=1"],
    "several policies train in one process": ["apart.train=main", "scale={engine: torchrun, train_workers: 2}"],
}  # fmt: skip


@pytest.mark.parametrize("says", REFUSED)
def test_what_cannot_be_is_said(says: str, tmp_path: Path) -> None:
    tiny = TINY if "policies=null" not in REFUSED[says] else [t for t in TINY if not t.startswith("policies")]
    with pytest.raises(RecipeError, match=says):
        start(resolve(overrides=[*tiny, f"apart.path={tmp_path}", *REFUSED[says]]), tmp_path / "run", quiet=True)
