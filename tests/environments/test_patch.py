"""Code to mend: grades of the outcome, steps that are easier to earn, and the gate between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.gate import accumulated

from coterie.api import start
from coterie.environments import Episode
from coterie.environments.patch import Patch, outcome, steps
from coterie.environments.scripted import played
from coterie.errors import RecipeError
from coterie.recipe import resolve
from coterie.rewards.shaping import gate
from coterie.tasks import patch
from coterie.tasks.base import validate

ROW = {"prompt": "x+3;4:20,5:25>", "code": "x+3", "tests": [(4, 20), (5, 25)]}


def play(*actions: str) -> tuple[Episode, list[str]]:
    world = Patch()
    assert world.reset(ROW) == "x+3"
    taken = [world.step(action) for action in actions]
    episode = Episode([s.reward for s in taken], list(actions), infos=[s.info for s in taken], done=taken[-1].done)
    return episode, [str(s.observation) for s in taken]


def test_code_is_edited_tested_and_submitted() -> None:
    episode, said = play("?", "=x*5", "=x*", "x*5", "?", "!5", "!")
    assert said == ["-->", "x*5>", "e>", "e>", "++>", "e>", ">"] and episode.done and episode.success
    assert [i["state"] for i in episode.infos] == ["x+3"] + ["x*5"] * 6
    assert [i["worth"] for i in episode.infos] == [0.25, 0.25, 0, 0, 0.25, 0, 0.25]
    assert episode.infos[0]["ran"] and "ran" not in episode.infos[1]


def test_grades_of_the_outcome() -> None:
    mended = "=x*5"
    tried = {"nothing": play("?", "?")[0], "unchanged": play("?", "!")[0], "back": play("=x*4", "=x+3", "!")[0],
             "fails": play("=x*4", "!")[0], "passes": play("?", mended, "?", "!")[0]}  # fmt: skip
    each = list(tried.values())
    assert dict(zip(tried, outcome([""] * 5, each), strict=True)) == {
        "nothing": -1, "unchanged": 0, "back": 0, "fails": 1, "passes": 2
    }  # fmt: skip
    assert steps([""] * 5, each) == [0.5, 0.5, 0.75, 0.5, 1.0]
    assert [e.success for e in each] == [False] * 4 + [True]
    failed = Episode(failed="it hung")
    assert outcome(["", ""], [failed, Episode()]) == [None, -1.0] and steps(["", ""], [failed, Episode()]) == [None, 0]


@pytest.mark.oracle("g-ra")
def test_who_only_tests_is_paid_for_it_without_the_gate_and_not_with_it() -> None:
    each = [play(*["?"] * 6)[0], play("=x*4", "!")[0], play("?", "=x*4", "!")[0]]
    high, low = outcome([""] * 3, each), steps([""] * 3, each)
    parts = {"outcome": torch.tensor(high, dtype=torch.float64), "steps": torch.tensor(low, dtype=torch.float64)}
    plain = parts["outcome"] + parts["steps"]
    got = gate(plain, parts, dict.fromkeys(parts, 1.0), gated=("steps",), by="outcome")
    assert plain.tolist() == [0.5, 1.5, 1.75] and got.tolist() == [-1.0, 1.5, 1.75]
    earned = [[i["worth"] for i in e.infos] for e in each]
    np.testing.assert_allclose(got, accumulated([-1.0, 1.0, 1.0], earned, 1.0), atol=1e-12)


def test_the_task() -> None:
    task = patch(train=40, held_out=5)
    assert validate(task, limit=5).ok and task.world is not None and task.script is not None
    for row in task.train:
        assert set(row["prompt"] + row["answer"]) <= set(task.vocabulary or "")
        right, wrong = (
            [eval(code, {"x": x}) == value for x, value in row["tests"]] for code in (row["answer"], row["code"])
        )
        assert all(right) and not any(wrong)
    episode = played(task.world, task.train[0], task.script)
    assert outcome([""], [episode]) == [2.0] and steps([""], [episode]) == [0.75]
    with pytest.raises(RecipeError, match="a turn to edit"):
        patch(turns=1)


def test_the_loop_pays_behind_the_gate(tmp_path: Path) -> None:
    small = ["task=patch", "model={init: {layers: 1, width: 16, heads: 2, context: 96}}", "threads=1", "steps=1",
             "draw.prompts=2", "rollout.group_size=4", "rollout.max_tokens=64", "evaluation.prompts=2"]  # fmt: skip
    last = start(resolve(method="grpo+g-ra", overrides=small), tmp_path / "run", quiet=True).last
    assert last["gate/open_share"] == 0  # from random weights nobody submits code that was changed
    assert last["reward/mean"] == pytest.approx(last["reward/outcome"]) and last["reward/steps"] >= 0
