"""Errors a user can act on. Each says what is wrong, where, and how to mend it, and has its own exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class CoterieError(Exception):
    """Base of every error that is the user's to mend. Shown as one message, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message, self.where, self.hint = message, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  mend: {self.hint}" if self.hint else text


class RecipeError(CoterieError):
    """A recipe, override or method name that cannot be used as written."""

    exit_code = 2


class DataError(CoterieError):
    """A data file, row or column that cannot be read."""

    exit_code = 3


class RewardError(CoterieError):
    """A reward function or verifier that raised, timed out or answered something that is not a reward."""

    exit_code = 4


class RunError(CoterieError):
    """A run directory, checkpoint or disk that cannot be used."""

    exit_code = 5


class PolicyError(CoterieError):
    """A model or tokenizer that cannot be loaded, sampled or scored as asked."""

    exit_code = 6


class ShapeError(CoterieError):
    """A column whose shape is not the one the vocabulary declares."""

    exit_code = 7


class SandboxError(CoterieError):
    """Model-written code that cannot be run safely here, or not as asked."""

    exit_code = 8


def plainly(problem: Mapping[str, Any]) -> str:
    """What pydantic says of one value, as the middle of a sentence."""
    said = str(problem["msg"]).removeprefix("Value error, ")
    return said[:1].lower() + said[1:]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint: the nearest known name, else the list of them."""
    known = sorted(names)
    close = nearest(name, known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(known) or 'none'}"
