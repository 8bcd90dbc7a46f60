"""A sum to work out with Python at hand: the environment runs what is asked of it in the sandbox."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from coterie.environments.base import RAN, Step
from coterie.sandbox import Limits
from coterie.sandbox.evaluator import Evaluator

ASK, ANSWER, END, ERROR = "?", "!", ">", "e"
LIMITS = Limits(seconds=24 * 3600.0, cpu_seconds=5, memory_mib=128)
"""Of the sandbox that all expressions share; an expression has seconds (`sandbox.evaluator`)."""
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
        if not action.startswith(ASK):
            return Step(ERROR + END, info={"success": False})
        said = calculate(action[1:])
        return Step(said + END, info={"success": False, RAN: said != ERROR})


@functools.lru_cache(4096)
def calculate(expression: str) -> str:
    """What Python makes of an expression; "e" where that is no whole number. The sandbox has no clock that it would
    depend on, so one run of an expression serves all. What is no expression is not run."""
    try:
        compile(expression, "expression", "eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ERROR
    said = _evaluator().value(expression) or ""
    return said[:LONGEST] if said.isascii() and said.removeprefix("-").isdigit() else ERROR


@functools.cache
def _evaluator() -> Evaluator:
    return Evaluator(LIMITS)
