"""Reward functions with memory: one object a run, taught once a step, in its checkpoints, alone in its process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coterie.api import resume, start
from coterie.build import build
from coterie.errors import RecipeError, RewardError
from coterie.recipe import resolve
from coterie.rewards.functions import WeightedReward, read
from coterie.rewards.remembering import check_alone, check_state, memory_of
from tests.e2e.conftest import TINY
from tests.e2e.processes import Command, wait_for
from tests.e2e.test_resume import assert_same_run

SECTION = SimpleNamespace(timeout=None, on_error=None)
HERE = Path(__file__)
COMMON = f"rewards.functions=[{{fn: {HERE}:Common, settings: {{decay: 0.5}}}}]"
SHORT = [*TINY, "steps=8", "checkpoint.every=2", "evaluation.every=0", COMMON]


class Common:
    """A completion earns how often its tokens came so far; so what is common becomes more so."""

    def __init__(self, *, decay: float) -> None:
        self.decay, self.lessons = decay, 0
        self.counts = torch.zeros(64, dtype=torch.float64)

    def __call__(self, completions: list[str], completion_ids: list[list[int]]) -> list[float]:
        share = self.counts / self.counts.sum().clamp_min(1.0)
        return [float(share[ids].mean()) if ids else 0.0 for ids in completion_ids]

    def learn(self, completion_ids: list[list[int]], answer: list[str], **columns: Any) -> None:
        assert len(completion_ids) == len(answer) == len(columns["prompts"])
        every = torch.tensor([i for ids in completion_ids for i in ids], dtype=torch.long)
        self.counts = self.decay * self.counts + torch.bincount(every, minlength=64)
        self.lessons += 1

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "lessons": self.lessons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.lessons = state["counts"], state["lessons"]


class Half:
    def __call__(self, completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    def state_dict(self) -> dict[str, Any]:
        return {}


class Forgets(Half):
    state_dict = None  # type: ignore[assignment]

    def learn(self, completions: list[str]) -> None:
        pass


class Silent:
    def __init__(self, *, loud: bool) -> None:
        pass


class Odd(Common):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": [{"a", "b"}]}


class Breaks(Common):
    def learn(self, completions: list[str]) -> None:
        raise ValueError("no lesson")


one_for_all = Common(decay=0.5)


def state(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / f"checkpoints/step-{step:06d}/state.pt")["pieces"]["rewards.functions=Common"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was never stopped."""
    return start(resolve(overrides=SHORT), tmp_path_factory.mktemp("whole") / "run", quiet=True)


def test_it_is_made_once_a_run_and_taught_once_a_step(whole: Any) -> None:
    assert whole.metrics[1]["reward/mean"] == 0.0 < whole.metrics[2]["reward/mean"]  # it knew nothing at first
    assert [state(whole.path, s)["lessons"] for s in (6, 8)] == [6, 8]
    mine, other = (build(resolve(overrides=SHORT)).stateful()["rewards.functions=Common"] for _ in range(2))
    assert mine is not other and mine.state_dict()["lessons"] == 0


def test_it_learns_from_groups_that_were_filtered_out_too(tmp_path: Path) -> None:
    """At first all rewards are equal, so every group is dropped; it learns from them all the same."""
    filtered = [*SHORT, "steps=1", "checkpoint.every=1", "selection.filters=[dynamic_sampling]"]
    result = start(resolve(overrides=filtered), tmp_path / "run", quiet=True)
    assert result.last["groups/dropped"] == result.last["groups/drawn"] > 0
    assert state(result.path, 1)["lessons"] == 1 and state(result.path, 1)["counts"].sum() > 0


def test_killed_and_resumed_it_is_as_if_never_stopped(whole: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = Command("train", *SHORT, "-q", "-o", str(run))
    wait_for(run, command.over, "checkpoints/step-000004")
    command.kill()
    if json.loads((run / "status.json").read_text())["state"] != "finished":
        resume(run, quiet=True)
    assert_same_run(run, whole.path)
    a, b = state(run, 8), state(whole.path, 8)
    assert torch.equal(a["counts"], b["counts"]) and a["lessons"] == b["lessons"] == 8
    assert "decay: 0.5" in (run / "recipe.yaml").read_text()


def test_functions_of_one_object_share_its_memory_and_its_lesson() -> None:
    from coterie.rewards.batch import Batch
    from coterie.rewards.runner import RewardRunner

    both = Common(decay=1.0)
    runner = RewardRunner([WeightedReward(both, "a"), WeightedReward(both.__call__, "b"), WeightedReward(len, "c")])
    assert runner.memories == {"a": both}
    runner.learn(Batch(["p"], ["x"], [{"answer": "1"}], [[3, 3]]))
    assert both.lessons == 1 and both.counts[3] == 2
    runner.learn(Batch([], [], [], []))
    assert both.lessons == 1


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"fn": f"{HERE}:Common"}, "needs the setting 'decay'"),
        ({"fn": f"{HERE}:Common", "settings": {"decay": 1.0, "decoy": 2}}, "has no setting 'decoy'"),
        ({"fn": f"{HERE}:Common", "settings": 3}, "'settings' is a mapping, got 3"),
        ({"fn": "os.path:basename", "settings": {}}, "'settings' is for classes, and this is none"),
        ({"fn": "exact", "settings": {}}, "'settings' is for classes; a verifier is written"),
        ({"fn": f"{HERE}:Silent", "settings": {"loud": True}}, "whose objects cannot be called"),
        ({"fn": f"{HERE}:one_for_all"}, "it is one object for every run that names it"),
        (one_for_all, "it is one object for every run that names it"),
    ],
)
def test_what_is_no_reward_of_one_run_is_refused(written: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read(written, SECTION)


@pytest.mark.parametrize(("of", "says"), [(Half, "has state_dict and no load_state_dict"), (Forgets, "has learn and")])
def test_half_a_memory_is_refused(of: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        memory_of(of(), "half")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["rewards.timeout=5"], "from which nothing comes back"),
        (["scale.engine=torchrun", "scale.train_workers=2"], "its own share of the rollouts"),
        (["scale.engine=ray"], "its own share of the rollouts"),
    ],
)
def test_where_processes_cannot_share_it_the_recipe_is_refused(overrides: list[str], says: str) -> None:
    from coterie.workers import Alone

    workers = Alone()
    recipe = resolve(overrides=[*SHORT, *overrides])
    workers.size = recipe.settings.scale.train_workers
    with pytest.raises(RecipeError, match=says) as refused:
        build(recipe, workers=workers)
    assert refused.value.hint
    check_alone([WeightedReward(len, "plain", timeout=1.0)], 2, "ray")  # what remembers nothing may be anywhere


def test_a_state_that_could_not_be_read_again_is_refused_before_training(tmp_path: Path) -> None:
    odd = [*TINY, f"rewards.functions=[{{fn: {HERE}:Odd, settings: {{decay: 1.0}}}}]"]
    with pytest.raises(RewardError, match=r"state_dict\(\)\['seen'\]\[0\] of reward function 'Odd' is of type set"):
        start(resolve(overrides=odd), tmp_path / "run", quiet=True)
    check_state({"a": [1, 2.0, None, "x", True, (torch.zeros(1),)]}, "fine")


def test_a_lesson_that_raises_stops_the_run_and_says_whose_it_is(tmp_path: Path) -> None:
    breaks = [*TINY, f"rewards.functions=[{{fn: {HERE}:Breaks, settings: {{decay: 1.0}}}}]"]
    with pytest.raises(RewardError, match="learn of reward function 'Breaks' raised ValueError: no lesson"):
        start(resolve(overrides=breaks), tmp_path / "run", quiet=True)


def test_the_reader_of_the_example_learns_what_drawings_have_in_common() -> None:
    from coterie.rewards.functions import resolve as named

    reader = named(f"{HERE.parents[2] / 'examples/learned_reader.py'}:Reader")()
    drawn = torch.randn(10, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    digits = list(range(10))
    assert reader(drawn, digits) == pytest.approx([-math.log(10)] * 10)
    for _ in range(20):
        reader.learn(drawn, digits)
    again = named(f"{HERE.parents[2] / 'examples/learned_reader.py'}:Reader")()
    again.load_state_dict(reader.state_dict())
    assert min(again(drawn, digits)) > -0.2 and max(again(drawn, digits[::-1])) < -2.0
