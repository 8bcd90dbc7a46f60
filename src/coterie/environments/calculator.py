"""A sum to work out with Python at hand: the environment runs what is asked of it in the sandbox."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step
from coterie.sandbox import Limits, Sandbox
from coterie.sandbox.process import PYTHON

ASK, ANSWER, END = "?", "!", ">"
LIMITS = Limits(seconds=30.0, cpu_seconds=2, memory_mib=128)
LONGEST = 12
"""Characters of an output that are shown."""


class Calculator:
    """Rows have `answer`, a text. An action that begins with "?" is a Python expression, and what it prints is the
    observation; one that begins with "!" is the answer and ends the episode, with 1 if it is right. Anything else, and
    an expression that fails, is answered with "e".
    """

    def reset(self, row: Mapping[str, Any]) -> None:
        self.answer = row["answer"]

    def step(self, action: str) -> Step:
        if action.startswith(ANSWER):
            right = action[1:] == self.answer
            return Step(END, float(right), True, {"success": right})
        return Step((calculate(action[1:]) if action.startswith(ASK) else "e") + END, info={"success": False})


@functools.lru_cache(4096)
def calculate(expression: str) -> str:
    """What Python prints for an expression; "e" where that is no whole number. The sandbox has no clock that it would
    depend on, so one run of an expression serves all. What is no expression is not run."""
    try:
        compile(expression, "expression", "eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "e"
    result = _sandbox().run([PYTHON, "-I", "-S", "-c", f"print({expression})"])
    said = result.stdout.strip()
    return said[:LONGEST] if result.ok and said.isascii() and said.removeprefix("-").isdigit() else "e"


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox(LIMITS)
