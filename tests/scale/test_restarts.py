"""Trainers that die are started again by the one that leads, and the run is that of one process that nobody stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from test_ray import EVERY, ONCE, RAY, complete, tickets
from test_workers import TINY, same, workers

from coterie.api import Result, start
from coterie.errors import RecipeError, RunError
from coterie.recipe import resolve

MORTAL = """
import signal

from coterie.pieces import credit


@credit()
def NAME(advantages, step, *, always: bool = False):
    \"\"\"Kills the second trainer in the second step, and once more in the fourth.\"\"\"
    if os.environ.get("RANK") == "1" and (always or step in (1, 3) and once(f"died-{step}")):
        os.kill(os.getpid(), signal.SIGKILL)
    return advantages
"""
STEPS = [*TINY, *EVERY, "steps=5", "checkpoint.every=2"]


@pytest.fixture
def mortal(tmp_path: Path) -> str:
    name = "mortal_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]  # one process registers it once
    (tmp_path / "mortal.py").write_text(ONCE + MORTAL.replace("NAME", name))
    return f"{tmp_path}/mortal.py:{name}"


def without_counts(run: Result) -> None:
    """Take what only a run with faults counts out of its metrics, for `same`."""
    for row in run.metrics:
        row.pop("workers/restarts", None)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))


@pytest.mark.parametrize(
    ("engine", "steps"),
    [
        (workers(2), 3),
        pytest.param([*workers(3), "scale.shard=true"], 5, marks=pytest.mark.cluster),
        pytest.param([*RAY, "scale.train_workers=2"], 5, marks=pytest.mark.cluster),
        pytest.param([*RAY, "scale.train_workers=2", "scale.shard=true"], 5, marks=pytest.mark.cluster),
    ],
    ids=["processes", "sharded processes", "ray", "sharded on ray"],
)
def test_it_goes_on_as_if_none_had_died(
    engine: list[str],
    steps: int,
    mortal: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Deaths in the second and the fourth step, when the last checkpoint is a step behind."""
    if "scale.engine=ray" in engine:
        request.getfixturevalue("cluster")
    overrides = [*STEPS, f"steps={steps}", f"credit.modifiers={mortal}"]
    one = start(resolve(overrides=overrides), tmp_path / "one", quiet=True)
    run = start(resolve(overrides=[*overrides, *engine]), tmp_path / "run", quiet=True)
    said = capfd.readouterr().err
    counted = [None, 1.0, 1.0, 2.0, 2.0, 2.0] if steps == 5 else [None, 1.0, 1.0, 1.0]
    assert [row.get("workers/restarts") for row in run.metrics] == counted
    for number in range(1, int(counted[-1] or 0) + 1):
        assert f"restart {number} of 3 from the last checkpoint" in said
    without_counts(run)
    same(one.path, run.path, steps=steps)
    assert tickets(run.path) == tickets(one.path) == list(range(4 * steps))


@pytest.mark.cluster
def test_ahead_of_the_trainers_no_group_is_lost_or_doubled(cluster: str, mortal: str, tmp_path: Path) -> None:
    ahead = [*RAY, "scale.train_workers=2", "scale.rollout_workers=2", "scale.max_staleness=2"]
    recipe = resolve(overrides=[*STEPS, f"credit.modifiers={mortal}", *ahead])
    run = start(recipe, tmp_path / "run", quiet=True)
    assert run.last["workers/restarts"] == 2.0
    complete(run.path, 5)
    assert max(row.get("staleness/max", 0.0) for row in run.metrics) <= 2.0


@pytest.mark.cluster
def test_a_run_that_always_loses_a_trainer_ends(mortal: str, tmp_path: Path) -> None:
    dies = [f"credit.modifiers={{'{mortal}': {{always: true}}}}", *workers(2), "scale.restarts=1"]
    with pytest.raises(RunError, match=r"worker 1 of 2 was killed \(SIGKILL\), after 1 restarts \(scale\.restarts\)"):
        start(resolve(overrides=[*STEPS, *dies]), tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


def test_one_process_has_no_trainers_to_restart() -> None:
    with pytest.raises(RecipeError, match=r"scale\.restarts is of several trainers"):
        resolve(overrides=[*TINY, "scale.restarts=1"])
