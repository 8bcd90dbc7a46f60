"""What goes into a reward function and what may come out of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.errors import RewardError, did_you_mean
from coterie.rewards.functions import WeightedReward


@dataclass(frozen=True)
class Batch:
    """Completions with their prompts, rows of the task and token ids, one of each a sample."""

    prompts: Sequence[Any]
    completions: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.completions)

    def part(self, i: int) -> Batch:
        """Sample i alone."""
        return Batch(self.prompts[i : i + 1], self.completions[i : i + 1], self.rows[i : i + 1], self.ids[i : i + 1])

    def arguments(self, function: WeightedReward) -> dict[str, Any]:
        """What TRL passes, by name: prompts, completions (messages where prompts are), completion_ids, every column of
        the data; of these, what the function takes. Raises RewardError where it needs something else.
        """
        chat = bool(self.prompts) and not isinstance(self.prompts[0], str)
        texts = [[{"role": "assistant", "content": c}] for c in self.completions] if chat else list(self.completions)
        names = dict.fromkeys(k for r in self.rows for k in r if k != "prompt")
        every: dict[str, list[Any]] = {k: [r.get(k) for r in self.rows] for k in names}
        every |= {"prompts": list(self.prompts), "completions": texts, "completion_ids": list(self.ids)}
        parameters = inspect.signature(function.fn).parameters.values()
        for p in parameters:
            if p.name not in every and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                raise RewardError(
                    f"reward function '{function.name}' takes '{p.name}', which is no column of the data",
                    hint=did_you_mean(p.name, every),
                )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return every
        return {p.name: every[p.name] for p in parameters if p.name in every}


def as_list(name: str, answer: Any, count: int) -> list[Any]:
    """One value a completion, from a list, tuple, array or tensor. Raises RewardError for anything else."""
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward function '{name}' gave {type(answer).__name__} {excerpt(answer)}, not a list",
            hint="give one number (or None) a completion",
        )
    if len(values) != count:
        raise RewardError(
            f"reward function '{name}' gave {len(values)} values for {count} completions",
            hint="give one number (or None) a completion",
        )
    return list(values)


def as_number(name: str, value: Any, i: int) -> float:
    """A finite float, from a number, a bool, or a scalar of an array library. Raises RewardError for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, bool | int | float) and math.isfinite(number):
            return float(number)
    except (ValueError, RuntimeError, OverflowError):
        pass  # an array of several numbers, or a whole number too large for a float
    raise RewardError(
        f"reward function '{name}' gave {excerpt(value)} for sample {i}", hint="a reward is a finite number, or None"
    )


def excerpt(value: Any, length: int = 80) -> str:
    """The beginning of a value's representation."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
