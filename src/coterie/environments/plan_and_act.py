"""A planner who sees what is wanted, and an executor who acts on nothing but the planner's words (arXiv:2508.20096)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

PLANNER, EXECUTOR = "planner", "executor"
KINDS = "ct"
"""First letters of the actions that there are: click and type."""
END = ">"


def action_score(said: str, wanted: str, places: int) -> float:
    """1 for the right kind of action, and then up to 1 more, the less the farther its place is off.

    The kind is a letter, the place a digit. Without the right kind the place is worth nothing, nor is one that does not
    exist. Where nothing is wanted nothing is right.
    """
    if not wanted or said[:1] != wanted[0]:
        return 0.0
    here, there = _place(said, places), _place(wanted, places)
    return 1.0 if here is None or there is None else 2.0 - abs(here - there) / (places - 1)


def _place(action: str, places: int) -> int | None:
    """Where an action is to take place; None where that is nowhere."""
    return int(action[1:]) if len(action) == 2 and action[1] in "0123456789"[:places] else None


class PlanAndAct:
    """Rows have `target`, an action. The planner writes, the executor reads it and acts.

    The planner gets the score of the action by the target. The executor, who cannot know the target, gets the score by
    what it was told: so it can learn to do as it is told before the planner says anything that is right. The verdict is
    that the action is the target.
    """

    def __init__(self, places: int) -> None:
        self.places = places

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.target = row["target"]
        return {PLANNER: ""}

    def step(self, actions: Mapping[str, str]) -> dict[str, Step]:
        if PLANNER in actions:
            self.told = actions[PLANNER]
            return {EXECUTOR: Step(self.told + END)}
        said = actions[EXECUTOR]
        info = {"success": said == self.target}
        wanted = {PLANNER: self.target, EXECUTOR: self.told}
        return {who: Step(END, action_score(said, what, self.places), True, info) for who, what in wanted.items()}
