"""A task: prompts to train on, problems held out, and who says what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.errors import DataError, RecipeError
from coterie.rewards.functions import WeightedReward

Row = dict[str, Any]


@dataclass
class Task:
    """Rows are dicts with a "prompt" (text or a list of messages) and whatever the graders read.

    `verify(completion, row)` is the verdict, `rewards` what is reinforced. Where one of the rewards is the verdict,
    `verdict` names it and it is computed once. `reference(row)` is a correct completion, `corrupt(row, seed)` a wrong
    one; both serve warm starts and `validate`. `vocabulary` are the characters a tokenizer made for this task knows.
    """

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    verify: Callable[[str, Row], bool] | None = None
    rewards: list[WeightedReward] = field(default_factory=list)
    verdict: str | None = None
    reference: Callable[[Row], str] | None = None
    corrupt: Callable[[Row, int], str] | None = None
    vocabulary: str | None = None
    notes: list[str] = field(default_factory=list)
    """What happened to the data on the way in, for example rows dropped because they were held out too."""


@dataclass
class Report:
    """What `validate` found."""

    task: str
    rows: int = 0
    references_rejected: int = 0
    corrupted: int = 0
    corrupted_accepted: int = 0
    first_rejected: str | None = None
    first_accepted: str | None = None

    @property
    def ok(self) -> bool:
        return self.rows > 0 and not self.references_rejected and not self.corrupted_accepted


def validate(task: Task, limit: int | None = None) -> Report:
    """Does the verifier accept every reference answer, and reject each one after it was corrupted?

    Looks at train and held-out rows. Raises RecipeError where the task has no verifier or no references.
    """
    if task.verify is None or task.reference is None:
        lacks = "verifier" if task.verify is None else "reference answers"
        raise RecipeError(
            f"task '{task.name}' has no {lacks} to validate", hint="give it a verifier and an answer column"
        )
    report = Report(task.name)
    for source in (task.train, task.held_out):
        for i in range(len(source) if limit is None else min(limit, len(source))):
            row = source[i]
            report.rows += 1
            good = task.reference(row)
            if not task.verify(good, row):
                report.references_rejected += 1
                report.first_rejected = report.first_rejected or f"{row['prompt']!r} -> {good!r}"
            if task.corrupt is not None:
                bad = task.corrupt(row, i)
                report.corrupted += 1
                if task.verify(bad, row):
                    report.corrupted_accepted += 1
                    report.first_accepted = report.first_accepted or f"{row['prompt']!r} -> {bad!r}"
    return report


def generate(make: Callable[[np.random.Generator], Row], train: int, held_out: int, seed: int) -> tuple[list, list]:
    """Distinct problems by content (their prompt), the first `held_out` of them held out.

    Raises RecipeError when the settings do not admit that many.
    """
    rng = np.random.default_rng(seed)
    rows: dict[Any, Row] = {}
    misses = 0
    while len(rows) < train + held_out:
        row = make(rng)
        key = str(row["prompt"])
        misses = misses + 1 if key in rows else 0
        rows.setdefault(key, row)
        if misses > 1000:
            raise RecipeError(
                f"these settings give only about {len(rows)} distinct problems, {train + held_out} are asked for",
                hint="lower train= and held_out=, or make the problems larger",
            )
    every = list(rows.values())
    return every[held_out:], every[:held_out]


def disjoint(train: Sequence[Row], held_out: Sequence[Row], where: str) -> tuple[list[Row], list[str]]:
    """Training rows whose prompt is not held out too, and a note when some were."""
    taken = {str(r["prompt"]) for r in held_out}
    kept = [r for r in train if str(r["prompt"]) not in taken]
    if not kept:
        raise DataError("no training rows are left that are not held out too", where=where, hint="lower held_out")
    lost = len(train) - len(kept)
    return kept, [f"{lost} training rows were held out too and left out"] if lost else []
