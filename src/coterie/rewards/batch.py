"""What goes into a reward function and what may come out of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from coterie.errors import RewardError, did_you_mean
from coterie.rewards.functions import WeightedReward


@dataclass(frozen=True)
class Batch:
    """Completions with their prompts, rows of the task and token ids, one of each a sample."""

    prompts: Sequence[Any]
    completions: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[Sequence[int]]
    unit: ClassVar[str] = "sample"
    grader: ClassVar[str] = "reward function"

    def __len__(self) -> int:
        return len(self.completions)

    def part(self, i: int) -> Batch:
        """Sample i alone."""
        return Batch(self.prompts[i : i + 1], self.completions[i : i + 1], self.rows[i : i + 1], self.ids[i : i + 1])

    def arguments(self, function: WeightedReward) -> dict[str, Any]:
        """What TRL passes, by name: prompts, completions (messages where prompts are), completion_ids, every column of
        the data; of these, what the function takes. Raises RewardError where it needs something else.
        """
        every = self.columns()
        parameters = inspect.signature(function.fn).parameters.values()
        for p in parameters:
            if p.name not in every and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                raise RewardError(
                    f"{self.grader} '{function.name}' takes '{p.name}', which is no column of the data",
                    hint=did_you_mean(p.name, every),
                )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return every
        return {p.name: every[p.name] for p in parameters if p.name in every}

    def columns(self) -> dict[str, list[Any]]:
        """Everything there is to take, by name."""
        names = dict.fromkeys(k for r in self.rows for k in r if k != "prompt")
        every: dict[str, list[Any]] = {k: [r.get(k) for r in self.rows] for k in names}
        own = {"prompts": self.prompts, "completions": self.texts(self.completions), "completion_ids": self.ids}
        return every | {k: list(v) for k, v in own.items()}

    def texts(self, completions: Sequence[str]) -> list[Any]:
        """Completions as a function gets them: messages where the prompts are."""
        chat = bool(self.prompts) and not isinstance(self.prompts[0], str)
        return [[{"role": "assistant", "content": c}] for c in completions] if chat else list(completions)

    def said(self, i: int) -> str:
        """Sample i in a message."""
        return f"prompt {excerpt(self.prompts[i])}, completion {excerpt(self.completions[i])}"


def as_list(
    name: str,
    answer: Any,
    count: int,
    each: str = "one number (or None)",
    *,
    of: str = "completion",
    by: str = "reward function",
) -> list[Any]:
    """One value a completion, from a list, tuple, array or tensor. Raises RewardError for anything else."""
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"{by} '{name}' gave {type(answer).__name__} {excerpt(answer)}, not a list",
            hint=f"give {each} a {of}",
        )
    if len(values) != count:
        raise RewardError(
            f"{by} '{name}' gave {len(values)} values for {count} {of}s",
            hint=f"give {each} a {of}",
        )
    return list(values)


def as_numbers(name: str, value: Any, i: int, count: int) -> list[float]:
    """A finite float for each of the `count` steps of sample i. Raises RewardError for anything else."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, list | tuple) or len(values) != count:
        raise RewardError(
            f"process function '{name}' gave {excerpt(value)} for sample {i}, which has {count} steps",
            hint="give a number for each of its completion_steps; rewards.step_separator says how steps are cut",
        )
    return [as_number(name, v, i) for v in values]


def as_number(
    name: str,
    value: Any,
    i: int,
    *,
    by: str = "reward function",
    unit: str = "sample",
    hint: str = "a reward is a finite number, or None",
) -> float:
    """A finite float, from a number, a bool, or a scalar of an array library. Raises RewardError for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, (int, float)) and math.isfinite(number):
            return float(number)
    except (ValueError, RuntimeError, OverflowError):
        pass  # an array of several numbers, or a whole number too large for a float
    raise RewardError(f"{by} '{name}' gave {excerpt(value)} for {unit} {i}", hint=hint)


def excerpt(value: Any, length: int = 80) -> str:
    """The beginning of a value's representation."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
