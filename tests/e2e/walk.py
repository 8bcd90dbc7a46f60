"""A task with a world, for methods that read turns and states: walk to a place on a line and stop there."""

from __future__ import annotations

from functools import partial
from typing import Any

from coterie.environments import Step, World, episode_return
from coterie.environments.self_verified import SelfVerified, outcome, repairs, steps
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task


class Walk:
    """From 2 to 0 or 4: "a" is a step up, other letters one down. A step nearer to the goal is worth something."""

    def reset(self, row: Any) -> str:
        self.at, self.goal = 2, row["goal"]
        return str(self.at)

    def step(self, action: str) -> Step:
        before, self.at = abs(self.at - self.goal), self.at + (1 if "a" in action else -1)
        done = self.at == self.goal
        nearer = 0.25 * (abs(self.at - self.goal) < before)
        return Step(f"{self.at % 10}>", nearer + done, done, {"success": done, "state": str(self.at)})


@task()
def walk(*, turns: int = 3, verifies: bool = False) -> Task:
    """Goals 0 and 4, each twice. verifies: with a verdict of the policy on each of its steps."""
    rows = [{"prompt": f"{goal}>", "goal": goal} for goal in (0, 4, 0, 4)]
    if verifies:
        graded = [
            WeightedReward(f, n, w)
            for f, n, w in ((outcome, "outcome", 1), (steps, "steps", 1), (repairs, "repairs", 0))
        ]
        return Task(
            "walk", rows, rows[:2], rewards=graded, vocabulary="0123456789>abvr+-.,",
            world=World(partial(SelfVerified, Walk), turns=2 * turns, turn_tokens=4),
        )  # fmt: skip
    return Task(
        "walk", rows, rows[:2], rewards=[WeightedReward(episode_return, "return")], vocabulary="0123456789>ab",
        world=World(Walk, turns=turns, turn_tokens=1), script=lambda row, observations: "a" if row["goal"] else "b",
    )  # fmt: skip
