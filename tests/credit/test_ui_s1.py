"""UI-S1: its advantage, its filter and the replay it is rolled out in."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from credit import agents
from hypothesis import given
from oracles import agents as oracle
from oracles import inputs

from coterie.build import build_task
from coterie.credit import group_norm, unbroken_turn_norm
from coterie.environments.base import Episode
from coterie.environments.replay import EXPERT, Replay
from coterie.environments.scripted import played
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.policies import kinds
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.recipe import resolve
from coterie.rollout.strategies.semi_online import semi_online
from coterie.rollouts import Prompt, Sampling
from coterie.selection import unbroken_spread
from coterie.tasks.frozen_lake import frozen_lake

COLUMNS = ("step_rewards", "groups", "turn", "mask")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"gamma": 0.9, "exact": 0.2, "of": "sum", "ddof": 0, "eps": 0.1},
    {"episode": 0.3, "step": 2.0, "lone": "zero", "scale": "none"},
]


def pick(t: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t[n] for n in COLUMNS]


@pytest.mark.oracle("ui-s1")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        agents.near(unbroken_turn_norm(*pick(t), **settings), oracle.ui_s1(n, **settings))


@pytest.mark.oracle("ui-s1")
def test_numbers_of_the_source() -> None:
    t = agents.table([[1, 0.5], [1, 1]])
    agents.near(unbroken_turn_norm(*pick(t), step=0.0), [[0.5, -1.5], [0.5, 0.5]], 1e-5)
    agents.near(unbroken_turn_norm(*pick(t), episode=0.0), [[-0.7071, -0.7071], [0.7071, 0.7071]], 1e-4)


@pytest.mark.oracle("ui-s1")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_filter_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n, t = agents.random(kind, seed)
        first = []
        for i in range(len(n["mask"])):
            count = oracle.steps(n["turn"], n["mask"], i)
            own = oracle.ui_s1_returns([float(r) for r in n["step_rewards"][i, :count]], 0.5, 0.9)
            first.append(own[0] if own else 0.0)
        spread = {g: np.std([f for f, h in zip(first, n["groups"], strict=True) if h == g]) for g in n["groups"]}
        want = [spread[g] > 0.6 for g in n["groups"]]
        assert unbroken_spread(*pick(t), above=0.6).tolist() == [float(w) for w in want]


@pytest.mark.reduction("ui-s1")
@given(agents.lists)
def test_without_discount_and_mistakes_it_is_grpo_by_turn(rows: list[list[float]]) -> None:
    t = agents.table(rows)
    got = unbroken_turn_norm(*pick(t), gamma=0.0, exact=-9.0, episode=0.0)
    for u in range(t["mask"].shape[1]):
        here = t["mask"][:, u]
        want = group_norm(t["step_rewards"][here, u], t["groups"][here], eps=1e-6)
        agents.near(got[here, u], want.numpy())


@pytest.mark.reduction("ui-s1")
@given(agents.lists)
def test_one_turn_and_no_second_part_is_grpo(rows: list[list[float]]) -> None:
    t = agents.table([r[:1] for r in rows])
    want = group_norm(t["step_rewards"][:, 0], t["groups"], eps=1e-6)
    agents.near(unbroken_turn_norm(*pick(t), step=0.0)[:, 0], want.numpy())


def test_a_mistake_is_paid_by_nobody_before_it() -> None:
    """Turns before a wrong one are worth the same however wrong it is, and whatever follows it."""
    a = oracle.ui_s1_returns([1, 0.5, 1, 1], 0.5, 0.9)
    b = oracle.ui_s1_returns([1, 0.0, 0, 0], 0.5, 0.9)
    assert a[0] == b[0] == 1.0 and a[2] == 1.5
    with collect(seen := Collector()):
        unbroken_turn_norm(*pick(agents.table([[1, 0.5], [1, 1]])))
    assert seen.means() == {"unbroken/exact_share": 0.75, "unbroken/return": 1.0}


def expert() -> Episode:
    return Episode(
        rewards=[0.0, 0.0, 1.0], actions=["go up", "go left", "stop"], observations=["A", "B", "C"],
        states=["s", "A", "B"], infos=[{}, {}, {"success": True}], done=True,
    )  # fmt: skip


def test_a_replay_compares_patches_and_ends() -> None:
    world = Replay(1, 1.0, 0.5)
    assert pickle.loads(pickle.dumps(expert())) == expert()
    assert world.reset({EXPERT: expert()}) == "s"
    right = world.step("go up")
    assert (right.observation, right.reward, right.done) == ("A", 1.0, False)
    near = world.step("go down")
    assert (near.observation, near.reward, near.done, near.info["patched"]) == ("go leftB", 0.5, False, True)
    end = world.step("stop")
    assert end.done and end.reward == 1.0 and not end.info["success"]  # patched on the way
    world.reset({EXPERT: expert()})
    assert world.step("").reward == 0.0
    over = world.step("jump")
    assert over.done and over.reward == 0.0 and not over.info["patched"]
    world = Replay(0, 1.0, 0.5)
    world.reset({EXPERT: expert()})
    assert [world.step(a).info.get("success", False) for a in ("go up", "go left", "stop")] == [False, False, True]
    world = Replay(-1, 1.0, 0.5)
    world.reset({EXPERT: replace(expert(), observations=[{"role": "tool", "content": "A"}, "B", "C"])})
    assert world.step("x").observation == {"role": "tool", "content": "go up\nA"}
    assert not world.step("x").done and world.step("x").done


def test_what_is_rolled_out_are_the_policys_own_actions() -> None:
    task = frozen_lake(train=4, held_out=1)
    assert task.world is not None and task.script is not None and task.vocabulary is not None
    policy = CausalLM.load(
        ModelSpec(init=TinySpec(vocabulary=task.vocabulary, layers=1, width=16, heads=2, context=120))
    )
    prompts = [Prompt(policy.encode(row["prompt"]), row, i) for i, row in enumerate(task.train)]
    with collect(seen := Collector()):
        out = semi_online(
            policy, prompts, [[3, 4, 5]] * 4, Sampling(max_tokens=110), False, task.world, task.script, patches=-1
        )
    assert out.prompts == prompts
    for i, episode in enumerate(out.episodes):
        said = played(task.world, dict(prompts[i // 3].row), task.script)
        assert episode.turns == said.turns and episode.rewards == [
            float(a == b) for a, b in zip(episode.actions, said.actions, strict=True)
        ]
        own = [int(t) for t in out["tokens"][i][out["mask"][i]]]
        assert policy.decode(own) == "".join(episode.actions)
        assert episode.success == (episode.actions == said.actions)
    assert 0.0 < seen.means()["replay/patched_share"] < 1.0


def test_a_task_without_a_script_is_refused() -> None:
    recipe = resolve(method="ui-s1", values={"task": "sort", "model": {"init": {"layers": 1}}})
    with pytest.raises(RecipeError, match="plays in a world, and task 'sort' has no "):
        kinds.check(recipe, build_task(recipe))
    kinds.check(resolve(method="ui-s1", values={"task": "frozen-lake"}), frozen_lake(train=1, held_out=1))
