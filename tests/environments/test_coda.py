"""CODA: a planner that learns through an executor that rests, and an executor that learns to do as it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import coda as oracle
from safetensors.torch import load_file

from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.credit import group_norm
from coterie.environments.plan_and_act import PlanAndAct, action_score
from coterie.errors import RecipeError
from coterie.loop import prepare
from coterie.recipe import resolve
from coterie.tasks import plan_and_act

words = st.text("ct0123456789x>", max_size=3)
targets = st.tuples(st.sampled_from("ct"), st.sampled_from("0123456789")).map("".join)
ROLES = [
    "task=plan-and-act", "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1", "steps=3",
    "draw.prompts=4", "rollout.group_size=8", "rollout.max_tokens=12", "evaluation.prompts=2", "checkpoint.every=3",
]  # fmt: skip


def roles(learner: str, rests: str) -> list[str]:
    return [f"policies.{learner}.optimizer={{adamw: {{lr: 1.0e-2}}}}", f"policies.{rests}.optimizer=null"]


def played(plan: str, does: str, target: str, places: int = 10) -> dict[str, float]:
    """What both get for a plan, and an executor that does this, whatever it reads."""
    world = PlanAndAct(places)
    assert world.reset({"target": target}) == {"planner": ""}
    asked = world.step({"planner": plan})
    assert list(asked) == ["executor"] and asked["executor"].observation == plan + ">" and not asked["executor"].done
    over = world.step({"executor": does})
    assert all(step.done and step.info == {"success": does == target} for step in over.values())
    return {name: step.reward for name, step in over.items()}


@pytest.mark.oracle("coda")
@given(words, words, targets, st.integers(2, 10))
def test_rewards_of_actions_against_the_oracle(plan: str, said: str, target: str, places: int) -> None:
    got = played(plan, said, target, places)
    assert got["planner"] == pytest.approx(oracle.reward(said, target, places), abs=1e-12)
    assert got["executor"] == pytest.approx(oracle.reward(said, plan, places), abs=1e-12)


@pytest.mark.oracle("coda")
def test_numbers() -> None:
    """Right, near, of the wrong kind, and without a place."""
    rewards = [played("??", does, "c3")["planner"] for does in ("c3", "c5", "t3", "c")]
    assert rewards == pytest.approx([2, 16 / 9, 0, 1])
    got = group_norm(torch.tensor(rewards, dtype=torch.float64), torch.zeros(4, dtype=torch.long))
    np.testing.assert_allclose(got, oracle.advantages(rewards, [0] * 4), rtol=1e-12)
    np.testing.assert_allclose(got, [0.8906, 0.6449, -1.3206, -0.2150], atol=1e-4)
    assert action_score("c9", "c0", 5) == action_score("c0", "c9", 5) == 1.0  # no such place
    assert played("t1", "t1", "c3") == {"planner": 0.0, "executor": 2.0}  # it did as it was told
    assert played("", "", "c3") == {"planner": 0.0, "executor": 0.0}


@pytest.mark.reduction("coda")
@given(st.lists(words, min_size=2, max_size=8), targets)
def test_an_executor_that_does_as_it_reads_leaves_grpo_and_one_that_does_not_leaves_nothing(
    plans: list[str], right: str
) -> None:
    group = torch.zeros(len(plans), dtype=torch.long)
    alone = torch.tensor([action_score(p, right, 10) for p in plans], dtype=torch.float64)
    obeyed = torch.tensor([played(p, p, right)["planner"] for p in plans], dtype=torch.float64)
    ignored = torch.tensor([played(p, "c4", right)["planner"] for p in plans], dtype=torch.float64)
    torch.testing.assert_close(group_norm(obeyed, group), group_norm(alone, group), rtol=0, atol=0)
    assert not group_norm(ignored, group).any()


@pytest.mark.oracle("coda")
def test_a_group_is_the_plans_for_one_state() -> None:
    both = [f"policies.{name}.optimizer={{adamw: {{lr: 1.0e-3}}}}" for name in ("planner", "executor")]
    run = build(resolve(method="coda", overrides=[*ROLES, *both]))  # one that rests keeps no rollouts
    for agent in run.agents:
        prepare(agent, 0, Clock())
    planner, executor = (agent.batch for agent in run.agents)
    assert planner is not None and executor is not None
    assert torch.equal(planner["episode"], executor["episode"])
    assert planner["groups"].unique(return_counts=True)[1].tolist() == [8] * 4
    want = oracle.advantages(planner["rewards"].double().tolist(), planner["groups"].tolist())
    np.testing.assert_allclose(planner["advantages"].double().numpy().ravel()[: len(want)], want, atol=1e-4)
    for i, (plan, act) in enumerate(zip(planner.episodes, executor.episodes, strict=True)):
        said, target = act.actions[0], planner.prompts[int(planner["groups"][i])].row["target"]
        assert float(planner["rewards"][i]) == pytest.approx(action_score(said, target, 4))
        assert float(executor["rewards"][i]) == pytest.approx(action_score(said, plan.actions[0], 4))


@pytest.mark.parametrize(("learner", "rests"), [("planner", "executor"), ("executor", "planner")])
def test_one_learns_and_the_other_rests(tmp_path: Path, learner: str, rests: str) -> None:
    """Which of them learns is the recipe's to say. Policies are under their names in a checkpoint."""
    result = start(resolve(method="coda", overrides=[*ROLES, *roles(learner, rests)]), tmp_path / "run", quiet=True)
    for name in (learner, rests):
        before, after = (
            load_file(tmp_path / f"run/checkpoints/step-{s:06d}/policies/{name}/policy/model.safetensors")
            for s in (0, 3)
        )
        assert any(not torch.equal(before[k], after[k]) for k in before) == (name == learner)
    assert f"agent/{learner}/loss/total" in result.last and f"agent/{rests}/loss/total" not in result.last


def test_the_task() -> None:
    task = plan_and_act(places=4, train=50, held_out=10)
    assert len(task.train) == 50 and len(task.held_out) == 10
    assert {r["target"] for r in task.train} == {k + p for k in "ct" for p in "0123"}
    for row in task.train:
        assert row["prompts"] == {"planner": row["target"] + ">", "executor": "x"}
    with pytest.raises(RecipeError, match="2 to 10 places, got 1"):
        plan_and_act(places=1)
