"""A number to find by asking: each guess is answered with what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

END = ">"


class GuessNumber:
    """Rows have `secret`, `low` and `high`, the ends of the range it is in. Where `secret` is None it is not settled
    before it must be: an answer leaves the larger part, of equal ones the upper.

    An action is a number; the observation says which range is left, so that the past need not be remembered. What is
    no number, or lies outside, changes nothing. The right one ends the episode with 1.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        self.secret, self.low, self.high = row["secret"], row["low"], row["high"]
        return show(self.low, self.high)

    def step(self, action: str) -> Step:
        guess = int(action) if action.isascii() and action.isdigit() else -1
        inside = self.low <= guess <= self.high
        if guess == self.secret or (inside and self.secret is None and self.low == self.high):
            return Step(END, 1.0, True, {"success": True})
        if inside:
            above = guess < self.secret if self.secret is not None else self.high - guess >= guess - self.low
            self.low, self.high = (guess + 1, self.high) if above else (self.low, guess - 1)
        return Step(show(self.low, self.high), info={"success": False})


def show(low: int, high: int) -> str:
    """The range, as the policy reads it."""
    return f"{low:02}-{high:02}{END}"
