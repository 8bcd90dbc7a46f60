"""A planner who sees what is wanted, and an executor who acts on nothing but the planner's words (arXiv:2508.20096)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

PLANNER, EXECUTOR = "planner", "executor"
KINDS = "ct"
"""Kinds of actions: click and type."""
END = ">"


def action_score(said: str, wanted: str, places: int) -> float:
    """1 for the right kind of action, and then up to 1 more, the less the farther its place is off.

    An action is a kind and a digit. Without the right kind the place is worth nothing, nor is one that does not exist.
    """
    if said[:1] != wanted[:1]:
        return 0.0
    place = said[1:]
    if len(place) != 1 or place not in "0123456789"[:places]:
        return 1.0
    return 2.0 - abs(int(place) - int(wanted[1:])) / (places - 1)


class PlanAndAct:
    """Rows have `target`, an action. The planner writes, the executor reads it and acts, and both get the score of the
    action. The verdict is that it is the target.
    """

    def __init__(self, places: int) -> None:
        self.places = places

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.target = row["target"]
        return {PLANNER: ""}

    def step(self, actions: Mapping[str, str]) -> dict[str, Step]:
        if PLANNER in actions:
            return {EXECUTOR: Step(actions[PLANNER] + END)}
        said = actions[EXECUTOR]
        over = Step(END, action_score(said, self.target, self.places), True, {"success": said == self.target})
        return {PLANNER: over, EXECUTOR: over}
