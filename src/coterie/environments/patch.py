"""A fault to mend: edit the code, run its tests, submit. Software engineering in small (G-RA, arXiv:2508.10548)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from coterie.environments.base import RAN, Episode, Step
from coterie.environments.calculator import calculate

EDIT, TEST, SUBMIT, END = "=", "?", "!", ">"
UNSUBMITTED, UNCHANGED, FAILS, PASSES = -1.0, 0.0, 1.0, 2.0
"""What the outcome of an episode is worth."""
STEP = 0.25
"""What a command that can be understood is worth."""


class Patch:
    """Rows have `code`, an expression in x that is not what it should be, and `tests`, pairs of x and its value there.

    "=" and an expression is the new code. "?" runs the tests in the sandbox, and is answered with a + or - for each.
    "!" submits, and ends the episode. Anything else, and code that is no expression, is answered with "e". Infos have
    the outcome, and what the step was worth.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        self.code, self.begun, self.tests = row["code"], row["code"], row["tests"]
        return self.code

    def step(self, action: str) -> Step:
        command, rest = action[:1], action[1:]
        if command == SUBMIT and not rest:
            return self._submitted()
        if command == TEST and not rest:
            said = "".join("+" if right else "-" for right in self._run())
            return self._told(said, {RAN: True})
        if command == EDIT and _is_expression(rest):
            self.code = rest
            return self._told(rest)
        return self._told("e", worth=0.0)

    def _submitted(self) -> Step:
        passes = all(self._run())
        outcome = PASSES if passes else FAILS if self.code != self.begun else UNCHANGED
        info = {"outcome": outcome, "worth": STEP, "success": passes, "state": self.code}
        return Step(END, outcome + STEP, True, info)

    def _told(self, said: str, more: Mapping[str, Any] | None = None, worth: float = STEP) -> Step:
        info = {"outcome": UNSUBMITTED, "worth": worth, "success": False, "state": self.code, **(more or {})}
        return Step(said + END, worth, info=info)

    def _run(self) -> list[bool]:
        return [calculate(f"(lambda x: {self.code})({x})") == str(value) for x, value in self.tests]


def _is_expression(text: str) -> bool:
    try:
        compile(text, "code", "eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def outcome(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """-1 for nothing submitted, 0 for the code as it was, 1 for other code that fails its tests, 2 if it passes."""
    return [None if e.failed is not None else e.infos[-1]["outcome"] if e.infos else UNSUBMITTED for e in episode]


def steps(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """What the commands were worth, one by one, whatever came of them."""
    return [None if e.failed is not None else math.fsum(i["worth"] for i in e.infos) for e in episode]
