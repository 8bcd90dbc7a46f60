"""The environments of `unreliable`. They live in processes of their own, which start faster for importing little."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

from coterie.environments import Step

KINDS = ("hang", "crash", "garbage", "die")


def fate(prompt: str, said: list[str]) -> str | None:
    """What befalls an episode after these actions: each kind one time in ten. All is lost on the prompt 9."""
    number = hashlib.blake2b("/".join([prompt, *said]).encode()).digest()[0] * 20 // 256
    kinds = KINDS[1:] if prompt.startswith("9") else [*KINDS, *[None] * 16]
    return kinds[number % len(kinds)]


class Walk:
    """From 2 to 0 or 4: "a" is a step up, other letters one down. What fate does is suffered, or the episode is spared
    and ends, or it goes on and is told of it."""

    def __init__(self, fate: str) -> None:
        self.fate = fate

    def reset(self, row: Any) -> None:
        self.at, self.goal, self.prompt = 2, row["goal"], row["prompt"]
        self.said: list[str] = []

    def step(self, action: str) -> Any:
        self.said.append(action)
        kind = fate(self.prompt, self.said)
        if kind is not None and self.fate == "suffered":
            return self.suffer(kind)
        if kind is not None and self.fate == "spared":
            return Step("-", 0.0, True, {"void": True})
        self.at += 1 if "a" in action else -1
        done = self.at == self.goal
        return Step(f"{self.at % 10}>", 1.0 if done else 0.0, done, {"success": done, "doomed": kind})

    def suffer(self, kind: str) -> Any:
        if kind == "hang":
            time.sleep(3600)
        if kind == "crash":
            os._exit(3)
        if kind == "garbage":
            return Step(b"\xff", float("nan"))  # type: ignore[arg-type]
        raise ValueError("died")
