"""What goes into a pairwise judge and what may come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from coterie.errors import RewardError
from coterie.rewards.batch import Batch, as_number, excerpt

Points = tuple[float, float]
"""What the first and the second of a pair get."""
SCALE = 10.0
"""Points that are shared out where a judge answers a probability."""
HINT = "give two numbers a pair, the scores of first and second, or the probability that first is better, or None"


@dataclass(frozen=True)
class Pairs(Batch):
    """Pairs of completions: `completions` are shown first, `second` after them."""

    second: Sequence[str] = ()
    unit: ClassVar[str] = "pair"
    grader: ClassVar[str] = "judge"

    def part(self, i: int) -> Pairs:
        """Pair i alone."""
        one = slice(i, i + 1)
        return Pairs(self.prompts[one], self.completions[one], self.rows[one], self.ids[one], self.second[one])

    def columns(self) -> dict[str, list[Any]]:
        """As for reward functions, with `first` and `second` (messages where prompts are) for the completions."""
        every = super().columns()
        every["first"] = every.pop("completions")
        every["second"] = self.texts(self.second)
        del every["completion_ids"]
        return every

    def said(self, i: int) -> str:
        return (
            f"prompt {excerpt(self.prompts[i])}, first {excerpt(self.completions[i])}, second {excerpt(self.second[i])}"
        )


def as_points(name: str, answer: Any, i: int) -> Points:
    """Points of both, from two finite numbers or a probability p (10p and 10-10p). Else raises RewardError."""
    value = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(value, list | tuple):
        if len(value) == 2:
            first, second = (as_number(name, v, i, by="judge", unit="pair", hint=HINT) for v in value)
            return first, second
    else:
        p = as_number(name, value, i, by="judge", unit="pair", hint=HINT)
        if 0.0 <= p <= 1.0:
            return SCALE * p, SCALE - SCALE * p
    raise RewardError(f"judge '{name}' gave {excerpt(answer)} for pair {i}", hint=HINT)
