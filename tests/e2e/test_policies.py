"""Several policies train together in one run: each with its own model, optimizer, groups, checkpoint and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coterie.api import resume, start
from coterie.build import build
from coterie.clock import Clock
from coterie.errors import RecipeError
from coterie.loop import prepare
from coterie.recipe import resolve
from tests.e2e.processes import Command, wait_for
from tests.e2e.test_resume import metrics

TINY = [
    "task={dilemma: {rounds: 2}}", "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1",
    "steps=4", "draw.prompts=2", "rollout.group_size=4", "rollout.max_tokens=12", "evaluation.prompts=2",
    "log.rollouts_every=1", "checkpoint={every: 2, keep: 9}",
]  # fmt: skip
BOTH = [
    "policies.left={optimizer: {adamw: {lr: 1.0e-3}}}",
    "policies.right={method: gigpo, optimizer: {adamw: {lr: 4.0e-3}}, model: {init: {layers: 2}}}",
]
FULL = [  # buffers, references, several optimizer steps, schedules, of one agent and not of the other
    *BOTH, "steps=6", "update.staleness=1", "policies.left.update={epochs: 2, minibatches: 2}",
    "policies.left.reference.update=ema", "policies.left.method=grpo+kl",
    "policies.right.optimizer.adamw.lr={from: 0, to: 1e-3, over: 5}", "evaluation.every=3",
]  # fmt: skip


def weights(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/policies/{name}/policy/model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start(resolve(overrides=[*TINY, *BOTH]), tmp_path_factory.mktemp("together") / "run", quiet=True)


def test_both_learn_each_with_what_is_its_own(trained: Any) -> None:
    for name in ("left", "right"):
        assert not same(weights(trained.path, 0, name), weights(trained.path, 4, name))
        assert (trained.path / f"checkpoints/step-000004/policies/{name}/state.pt").is_file()
    first, last = trained.metrics[0], trained.last
    assert last["agent/left/lr"] == 1e-3 and last["agent/right/lr"] == 4e-3
    assert "agent/right/kl/ref" in last and "agent/left/kl/ref" not in last
    for row in trained.metrics[1:]:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float)), row
        mean = (row["agent/left/reward/mean"] + row["agent/right/reward/mean"]) / 2
        assert row["reward/mean"] == pytest.approx(mean)
        assert row["tokens/decisions"] == row["agent/left/tokens/decisions"] + row["agent/right/tokens/decisions"]
    assert {f"agent/{n}/eval/{m}" for n in ("left", "right") for m in ("accuracy", "reward")} <= first.keys()
    assert trained.policies.keys() == {"left", "right"} and trained.policy is trained.policies["left"]
    assert (trained.path / "rollouts/right/step-000004.parquet").is_file()
    assert (trained.path / "rollouts/left/step-000004.parquet").is_file()


def test_groups_never_mix_agents_and_all_play_as_they_are_before_any_update() -> None:
    run = build(resolve(overrides=[*TINY, *BOTH]))
    for agent in run.agents:
        prepare(agent, 0, Clock())
        assert agent.batch is not None and len(agent.batch) == 8
        rows = agent.batch.prompts
        assert {p.row["agent"] for p in rows} == {agent.name}
        assert agent.batch["groups"].unique(return_counts=True)[1].tolist() == [4, 4]
    left, right = (agent.batch for agent in run.agents)
    assert left is not None and right is not None
    assert torch.equal(left["episode"], right["episode"])  # the same episodes, played once
    assert torch.equal(left["step_rewards"], right["other_rewards"])
    assert run.agents[0].optimizer is not run.agents[1].optimizer
    theirs = {id(p) for p in run.agents[1].policy.trainable_parameters()}
    assert not any(id(p) in theirs for p in run.agents[0].policy.trainable_parameters())


def test_a_frozen_policy_only_plays(tmp_path: Path) -> None:
    frozen = [*TINY, *BOTH, "policies.right.optimizer=null"]
    result = start(resolve(overrides=frozen), tmp_path / "run", quiet=True)
    assert same(weights(result.path, 0, "right"), weights(result.path, 4, "right"))
    assert not same(weights(result.path, 0, "left"), weights(result.path, 4, "left"))
    assert "agent/right/reward/mean" in result.last and "agent/right/loss/total" not in result.last
    assert "agent/left/loss/total" in result.last
    assert resume(result.path, steps=5, quiet=True).last["step"] == 5


def test_killed_and_resumed_both_are_as_if_never_stopped(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    start(resolve(overrides=[*TINY, *FULL]), whole, quiet=True)
    command = Command("train", *TINY, *FULL, "-q", "-o", str(run))
    wait_for(run, command.over, "checkpoints/step-000002")
    command.kill()
    status = json.loads((run / "status.json").read_text())
    if status["state"] != "finished":
        resume(run, quiet=True)
    assert metrics(run) == metrics(whole)
    for name in ("left", "right"):
        assert same(weights(run, 6, name), weights(whole, 6, name))
        a, b = (torch.load(r / f"checkpoints/step-000006/policies/{name}/state.pt") for r in (run, whole))
        assert str(a["optimizer"]) == str(b["optimizer"]) and a["version"] == b["version"] > 0


def test_one_policy_may_play_all(tmp_path: Path) -> None:
    result = start(resolve(method="ad-align", overrides=TINY), tmp_path / "run", quiet=True)
    assert result.policies == {} and {"agent/left/eval/reward", "agent/right/eval/reward"} <= result.last.keys()
    assert result.last["groups/drawn"] == 4.0  # of each prompt a group of either player
    assert result.last["align/own"] >= 0


def test_the_recipe_says_what_is_each_ones_own(cli: Callable, tmp_path: Path) -> None:
    recipe = resolve(overrides=[*TINY, *FULL])
    from coterie.layers import from_dotted

    again = resolve(values=from_dotted(recipe.to_dict(), "written").tree)
    assert again.to_yaml() == recipe.to_yaml()
    assert again.policies["right"].settings.model["init"]["layers"] == 2
    assert again.policies["left"].settings.update.epochs == 2 != again.policies["right"].settings.update.epochs
    numbers = json.loads(cli("plan", *TINY, *BOTH, "policies.left.optimizer=null", "--json").out)["derived"]
    assert numbers["policies"] == "left (grpo, frozen), right (gigpo)"
    assert "of left and right" in numbers["world"]


def test_the_command_line_exports_and_evaluates_all(cli: Callable, trained: Any) -> None:
    assert cli("export", str(trained.path), "models").code == 0
    assert Path("models/left/model.safetensors").is_file() and Path("models/right/model.safetensors").is_file()
    found = json.loads(cli("eval", str(trained.path), "--json").out)
    assert found == {k: v for k, v in trained.last.items() if "/eval/" in k}


REFUSED = {
    "policies are left, and in task 'dilemma' left, right act": ["policies.left={}"],
    "in task 'sort' one policy acts": [*BOTH, "task=sort"],
    "rollout.strategy=growing_horizon is not for several": [*BOTH, "rollout.strategy={growing_horizon: {turns: [2]}}"],
    "task 'dilemma' has no script to warm-start on": [*BOTH, "warm_start.steps=3"],
    "no policy has an optimizer": [*BOTH, "policies.left.optimizer=null", "policies.right.optimizer=null"],
    "the recipe has no optimizer": ["optimizer=null"],
    "'steps' is no setting of one policy": ["policies.left={steps: 3}"],
    "'policies' is a mapping by name, got 'left'": ["policies=left"],
    "policy 'left' is a mapping of settings, got 3": ["policies.left=3"],
    "has no setting 'lrr'": ["policies.left.optimizer.adamw.lrr=3"],
    "several policies train in one process": [*BOTH, "scale.engine=torchrun", "scale.train_workers=2"],
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_cannot_be_is_said(says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        start(resolve(overrides=[*TINY, *REFUSED[says]]), tmp_path / "run", quiet=True)
