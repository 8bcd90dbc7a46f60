"""Environments that hang, crash, answer garbage and die: the run goes on as if those episodes had not been."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.environments import World
from coterie.loop import learn, prepare
from coterie.observe.rollout_store import read
from coterie.recipe import resolve
from coterie.run import Run
from tests.e2e.conftest import Answer
from tests.e2e.unreliable_world import Walk

FILE = Path(__file__).with_name("unreliable.py")
TINY = [
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1", "steps=3", "draw.prompts=4",
    "rollout.group_size=4", "rollout.max_tokens=24", "optimizer.lr=1e-2", "checkpoint.every=2", "log.rollouts_every=1",
]  # fmt: skip
TOLD = ("time/", "system/", "tokens/per_second", "episode/failed_share", "episode/done_share")
"""What a clock says, and what the world says of its episodes."""


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints/step-000003/policy").glob("*.safetensors")
    return load_file(file)


def assert_same(got: Path, want: Path) -> None:
    kept = [[{k: v for k, v in r.items() if not k.startswith(TOLD)} for r in rows(run)] for run in (got, want)]
    assert kept[0] == kept[1]
    a, b = weights(got), weights(want)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_as_if_the_episodes_that_failed_had_not_been(cli: Callable[..., Answer], tmp_path: Path) -> None:
    """Bit for bit, the weights and metrics are those of a run in which the same episodes end and have no reward."""
    answer = cli("train", f"task={FILE}:unreliable", *TINY, "-q", "-o", str(tmp_path / "faulty"))
    assert answer.code == 0, answer.err
    answer = cli(
        "train", f"task={{'{FILE}:unreliable': {{fate: spared}}}}", *TINY, "-q", "-o", str(tmp_path / "spared")
    )
    assert answer.code == 0, answer.err
    steps = [r for r in rows(tmp_path / "faulty") if "reward/mean" in r]
    assert len(steps) == 3 and all(0 < r["episode/failed_share"] < 1 for r in steps)
    assert [r["reward/nones"] for r in steps] == [16 * r["episode/failed_share"] for r in steps]
    assert all(r["episode/failed_share"] == 0 for r in rows(tmp_path / "spared") if "reward/mean" in r)
    assert_same(tmp_path / "faulty", tmp_path / "spared")

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "faulty", resumed)
    shutil.rmtree(resumed / "checkpoints/step-000003")
    answer = cli("resume", str(resumed), "-q")
    assert answer.code == 0, answer.err
    assert_same(resumed, tmp_path / "faulty")
    assert [r for r in rows(resumed) if "reward/mean" in r][2]["episode/failed_share"] == steps[2][
        "episode/failed_share"
    ]


def test_the_episodes_that_did_not_fail_are_those_of_a_run_without_faults(tmp_path: Path) -> None:
    """Before the weights differ: the same tokens and rewards, and each is compared with those of its group alone."""
    told: dict[str, list[dict[str, Any]]] = {}
    for fate in ("told", "suffered"):
        recipe = resolve(overrides=[f"task={{'{FILE}:unreliable': {{fate: {fate}}}}}", *TINY, "steps=1", "seed=1"])
        told[fate] = read(start(recipe, tmp_path / fate, quiet=True).path / "rollouts/step-000001.parquet")
    assert {row["reward.doomed"] for row in told["told"]} == {0.0, 1.0, 2.0, 3.0, 4.0}  # every kind of failure
    sound = [row for row in told["told"] if row["reward.doomed"] == 0.0]
    assert 0 < len(sound) == len(told["suffered"]) < 16 == len(told["told"])
    same = ("prompt", "ids", "decided", "turn", "step_rewards", "reward", "truncated")
    for ours, theirs in zip(told["suffered"], sound, strict=True):
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours["logp_old"] == pytest.approx(theirs["logp_old"], abs=1e-5)  # sums depend on the batch's size
        group = np.array([row["reward"] for row in sound if row["group"] == theirs["group"]])
        deviation = group.std(ddof=1) if len(group) > 1 else 0.0
        assert ours["advantage"] == pytest.approx((ours["reward"] - group.mean()) / (deviation + 1e-4), abs=1e-5)


class Doomed(Walk):
    """Fails where its place in the batch is among `places`, whatever the policy does."""

    places: frozenset[int] = frozenset()
    made = 0

    def __init__(self) -> None:
        super().__init__("told")
        self.place, Doomed.made = Doomed.made, Doomed.made + 1

    def step(self, action: str) -> Any:
        if self.place in self.places and self.said:
            raise ValueError("died")
        return super().step(action)


def test_failures_that_do_not_depend_on_actions_leave_the_update_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean update over all the ways in which two of a group of four can fail is the update without failures."""
    tiny = [f"task={{'{FILE}:unreliable': {{fate: told}}}}", *TINY, "draw.prompts=1", "optimizer={sgd: {lr: 1.0}}",
            "update.max_grad_norm=1e9", "seed=16"]  # fmt: skip

    def moved(*places: int) -> torch.Tensor:
        monkeypatch.setattr(Doomed, "places", frozenset(places))
        monkeypatch.setattr(Doomed, "made", 0)
        run = build(resolve(method="rloo", overrides=tiny))
        assert run.task.world is not None
        run.task = replace(run.task, world=World(Doomed, turns=3, turn_tokens=2))
        before = flat(run)
        prepare(run, 0, Clock())
        assert run.batch is not None and len(run.batch) == 4 - len(places)
        learn(run, 0, Clock())
        return flat(run) - before

    def flat(run: Run) -> torch.Tensor:
        return torch.cat([p.detach().double().flatten() for p in run.policy.trainable_parameters()])

    whole = moved()
    parts = torch.stack([moved(*places) for places in itertools.combinations(range(4), 2)])
    assert whole.norm() > 1e-3 and (parts - whole).norm(dim=-1).min() > 0.1 * whole.norm()
    assert torch.allclose(parts.mean(0), whole, rtol=0, atol=1e-5 * float(whole.norm()))
