"""Small worlds for tests."""

from __future__ import annotations

import time
from typing import Any

from coterie.environments import Step


class Walk:
    """From a to b on a line: "r" is a step up, other letters one down."""

    def reset(self, row: Any) -> str:
        self.at, self.goal = row["start"], row["goal"]
        return str(self.at)

    def step(self, action: str) -> Step:
        self.at += 1 if "a" in action else -1
        done = self.at == self.goal
        return Step(f"={self.at % 10}+", float(done), done, {"success": done, "state": str(self.at)})


class Faulty(Walk):
    """Breaks down in ways that depend on the row alone."""

    def step(self, action: str) -> Any:
        kind = self.goal % 10
        if kind == 1:
            raise ValueError("broken")
        if kind == 2:
            return "garbage"
        if kind == 3:
            return Step("=1", float("nan"))
        if kind == 4:
            time.sleep(60)
        if kind == 5:
            import os

            os._exit(3)
        return super().step(action)


class Spoken(Walk):
    """The same in a conversation: observations are messages of a tool."""

    def step(self, action: str) -> Step:
        step = super().step(action)
        return Step({"role": "tool", "content": f"at {self.at}"}, step.reward, step.done, step.info)


class Later(Walk):
    """Answers when awaited."""

    async def step(self, action: str) -> Step:  # type: ignore[override]
        return super().step(action)
