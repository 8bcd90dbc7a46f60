"""Worlds of Gymnasium and of verifiers, through the real packages."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from coterie.adapters import verifiers as ours
from coterie.adapters.gymnasium import GymnasiumText, Spoken, described, make
from coterie.environments.scripted import played
from coterie.errors import RecipeError
from coterie.tasks.base import Task, validate
from coterie.tasks.gymnasium import gymnasium as gymnasium_task
from coterie.tasks.verifiers import verifiers as verifiers_task


@pytest.fixture
def gym() -> Any:
    return pytest.importorskip("gymnasium", reason="the extra `agents` is not installed")


def task(id: str, **settings: Any) -> Task:
    return gymnasium_task(id=id, **{"train": 12, "held_out": 6, **settings})


def test_the_lake_of_gymnasium(gym: Any) -> None:
    lakes = task("FrozenLake-v1")
    assert validate(lakes).ok and lakes.train == task("FrozenLake-v1").train
    assert lakes.train != task("FrozenLake-v1", seed=1).train
    assert len({r["prompt"] for r in (*lakes.train, *lakes.held_out)}) > 12
    assert "[S]" in lakes.train[0]["prompt"] and "\x1b" not in lakes.train[0]["prompt"]
    assert lakes.world is not None
    world = lakes.world.make()
    world.reset(lakes.train[0])
    step = world.step("go north")
    assert not step.info["valid"] and "left, down, right, up" in str(step.observation)
    assert "[S]" in str(world.step("0").observation)  # a number is an action too; left of the start is the shore


def test_cards_and_taxis(gym: Any) -> None:
    cards = task("Blackjack-v1")
    assert cards.script is None and cards.world is not None
    results = set()
    for row in cards.train:
        assert row["prompt"].startswith("You have ") and "Actions: stick, hit." in row["prompt"]
        episode = played(cards.world, row, lambda row, seen: "stick")
        again = played(cards.world, row, lambda row, seen: "stick")
        assert episode.rewards == again.rewards and episode.done and episode.success == (episode.total > 0)
        results.add(episode.total)
    assert len(results) > 1
    taxi = next(name for name in gym.registry if name.startswith("Taxi-"))
    rides = task(taxi, train=2, held_out=1, above=-100.0)
    assert "pick up, drop off" in rides.train[0]["prompt"] and rides.train[0]["prompt"] != rides.train[1]["prompt"]
    assert rides.world is not None
    episode = played(rides.world, rides.train[0], lambda row, seen: "drop off")
    assert episode.rewards == [-10.0] * 20 and not episode.success


def test_what_cannot_be_said_is_refused(gym: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(gym.Env):
        metadata = {"render_modes": []}
        action_space = gym.spaces.Box(-1, 1, (2,))
        observation_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return 0, {}

    class Steps(Wide):
        action_space = gym.spaces.Discrete(2, start=5)

        def step(self, action: int) -> Any:
            return int(action) - 5, float(action == 6), action == 6, False, {}

    gym.register("Wide-v0", Wide)
    gym.register("Steps-v0", Steps)
    try:
        with pytest.raises(RecipeError, match="cannot be named"):
            make("Wide-v0", Spoken(), {"seed": 0})
        with pytest.raises(RecipeError, match="cannot make 'Nowhere-v0'"):
            task("Nowhere-v0")
        world = GymnasiumText("Steps-v0")
        assert world.reset({"prompt": "?", "seed": 3}) == "0"
        assert world.step("1").info["valid"] is False and world.step("5").observation == "\n0\n> "
        end = world.step("6")
        assert end.done and end.info["success"] and end.reward == 1.0
        assert described(world.env, 7, Spoken(shown=lambda env, seen: f"at {seen}")) == "at 7"
    finally:
        del gym.registry["Wide-v0"], gym.registry["Steps-v0"]
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(RecipeError, match="coterie\\[agents\\]"):
        task("FrozenLake-v1")


def given(prompt: Any, **more: Any) -> Any:
    """A task as verifiers has them, in what is read of it."""
    return SimpleNamespace(
        data=SimpleNamespace(prompt=prompt, system_prompt=more.pop("system", None)), config=None, **more
    )


def test_tasks_that_are_no_prompt_and_rewards_are_refused() -> None:
    said = [SimpleNamespace(role="user", content=[SimpleNamespace(text="a"), SimpleNamespace(text="b")])]
    assert ours.messages(given(said, system="s")) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"},
    ]
    assert ours.messages(given("x")) == [{"role": "user", "content": "x"}]
    assert len(ours.load(lambda: [given("x"), given("y")], 1)) == 1
    for bad, why in (
        (given("x", NEEDS_CONTAINER=True), "a container"),
        (given("x", toolsets=lambda config: ["server"]), "tool servers"),
        (given(None), "speaks first"),
    ):
        with pytest.raises(RecipeError, match=why):
            ours.load(lambda bad=bad: [bad])
    with pytest.raises(RecipeError, match="no text"):
        ours.messages(given([SimpleNamespace(role="user", content=[SimpleNamespace(url="x.png")])]))
    with pytest.raises(RecipeError, match="no end"):
        ours.load(lambda: SimpleNamespace(bounded=False))


def sums() -> Any:
    """A real taskset: sums, with a reward of weight 2, one of 0.5 and a metric."""
    import verifiers.v1 as vf

    class Sum(vf.TaskData):
        answer: str = ""

    class SumTask(vf.Task[Sum]):
        @vf.reward(weight=2.0)
        async def right(self, trace: vf.Trace) -> float:
            return float(trace.last_reply.split()[-1:] == [self.data.answer])

        @vf.reward(weight=0.5)
        async def short(self, trace: vf.Trace) -> float:
            return float(len(trace.last_reply) < 4)

        @vf.metric
        async def turns(self, trace: vf.Trace) -> float:
            return float(trace.num_turns)

    class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
        def load(self) -> Any:
            for a in range(10):
                yield SumTask(Sum(prompt=f"{a}+1=", system_prompt="Add.", answer=str(a + 1)))

    return Sums(vf.TasksetConfig())


def test_a_real_taskset_of_verifiers() -> None:
    pytest.importorskip("verifiers", reason="the package verifiers is not installed")
    made = verifiers_task(taskset=f"{__name__}:sums", success=2.5, held_out=2)
    assert len(made.train) == 8 and len(made.held_out) == 2 and made.world is not None
    row = made.train[0]
    assert row["prompt"][0] == {"role": "system", "content": "Add."}
    answer = str(int(row["prompt"][1]["content"][0]) + 1)
    right = played(made.world, row, lambda row, seen: answer)
    assert right.total == 2.5 and right.success and right.infos[0]["turns"] == 1.0
    long = played(made.world, row, lambda row, seen: f"that is {answer}")
    assert long.total == 2.0 and not long.success
    assert played(made.world, row, lambda row, seen: "x").total == 0.5
