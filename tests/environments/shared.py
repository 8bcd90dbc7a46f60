"""Small worlds of several agents for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments import Step


class Desk:
    """A main agent that may call a helper: "a" is a call, anything else ends the episode. The helper says one thing; it
    earns 1 at once for "b", and in the end what the main agent earned, which is the number of its calls.

    Rows have `fails`: the round in which the world breaks down, -1 for none, -2 for a wrong answer.
    """

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.fails, self.round, self.calls = row.get("fails", -1), 0, 0
        return {"main": row.get("hello", "")}

    def step(self, actions: Mapping[str, str]) -> Any:
        if self.round == self.fails:
            raise ValueError("broken")
        if self.fails == -2:
            return {"nobody": Step("")}
        self.round += 1
        if "helper" in actions:
            good = float("b" in actions["helper"])
            return {"helper": Step("", good, True, {"state": "done"}), "main": Step(f"={int(good)}>", 0.5)}
        if "a" in actions["main"]:
            self.calls += 1
            return {"helper": Step(f"{self.calls}?")}
        won = {"success": self.calls > 0}
        return {"main": Step("", self.calls, True, won), "helper": Step("", self.calls, True, won)}
