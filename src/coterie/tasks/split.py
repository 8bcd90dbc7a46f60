"""Train and held-out rows that share no content."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from coterie.errors import DataError, RecipeError

Row = dict[str, Any]
Key = Callable[[Row], Hashable]


def prompt_of(row: Row) -> str:
    """The content of a row, unless a task knows better: its prompt.

    Of messages, whatever the order of their keys, and without the empty ones Parquet fills in: one conversation read
    from two formats is the same content.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    said = [{k: v for k, v in message.items() if v is not None} for message in prompt]
    return json.dumps(said, sort_keys=True, default=str)


def first(rows: list[Row], count: int | None, setting: str, *, least: int = 1) -> list[Row]:
    """The first `count` rows, all for None. Raises RecipeError for a count below `least`, naming the setting."""
    if count is not None and count < least:
        raise RecipeError(
            f"{setting} is a number of rows, at least {least}, got {count}", hint=f"leave out {setting} for all"
        )
    return rows[:count]


def generate(
    make: Callable[[np.random.Generator], Row],
    train: int,
    held_out: int,
    seed: int,
    *,
    key: Key = prompt_of,
    distinct: Key = prompt_of,
) -> tuple[list[Row], list[Row]]:
    """(training, held-out) problems: distinct prompts, and no `key` (what makes two problems the same) on both sides.
    distinct: what no two training problems share, where that is not the prompt.

    Raises RecipeError when the settings do not admit that many.
    """
    rng = np.random.default_rng(seed)
    held: dict[Hashable, Row] = {}
    kept: dict[Hashable, Row] = {}
    misses = 0
    while len(held) < held_out or len(kept) < train:
        row = make(rng)
        wanted = len(held) < held_out
        known = key(row) in held or (not wanted and distinct(row) in kept)
        misses = misses + 1 if known else 0
        if misses > 1000:
            raise RecipeError(
                f"these settings give only about {len(held) + len(kept)} distinct problems, "
                f"{train + held_out} are asked for",
                hint="lower train= and held_out=, or make the problems larger",
            )
        if not known and wanted:
            held[key(row)] = row
        elif not known:
            kept[distinct(row)] = row
    return list(kept.values()), list(held.values())


def split_disjoint(
    rows: Sequence[Row], held_out: float | int, seed: int, where: str, *, key: Key = prompt_of
) -> tuple[list[Row], list[Row], list[str]]:
    """(training rows, held-out rows, notes): a random fraction (below 1) or number of rows is held out."""
    if held_out < 0:
        raise RecipeError(f"held_out is a fraction or a number of rows, got {held_out}", where=where)
    count = int(held_out) if held_out >= 1 or held_out == 0 else max(int(len(rows) * held_out), 1)
    if count >= len(rows):
        raise RecipeError(
            f"{count} rows held out of {len(rows)} leave nothing to train on", where=where, hint="task.held_out=0.1"
        )
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    held = [rows[i] for i in order[:count]]
    train, notes = disjoint([rows[i] for i in order[count:]], held, where, key=key)
    return train, held, notes


def disjoint(
    train: Sequence[Row], held_out: Sequence[Row], where: str, *, key: Key = prompt_of
) -> tuple[list[Row], list[str]]:
    """Training rows whose content is not held out too, and a note when some were."""
    taken = {key(r) for r in held_out}
    kept = [r for r in train if key(r) not in taken]
    if not kept:
        raise DataError("no training rows are left that are not held out too", where=where, hint="lower held_out")
    lost = len(train) - len(kept)
    return kept, [f"{lost} training rows were held out too and left out"] if lost else []
