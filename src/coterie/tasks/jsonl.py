"""Your own data: any file or dataset with a prompt column."""

from __future__ import annotations

from typing import Any

import numpy as np

from coterie.errors import DataError, RecipeError, did_you_mean
from coterie.pieces import task
from coterie.rewards.functions import Verdict, verifier_reward
from coterie.rewards.runner import RewardRunner
from coterie.tasks.base import Row, Task, disjoint
from coterie.tasks.sources import load_rows


@task()
def jsonl(
    *,
    path: str,
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str = "solution",
    verifier: str | dict[str, Any] | None = None,
    split: str = "train",
    held_out: float | int | str = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Task:
    """Prompts (text, or conversations as TRL and verl write them) from JSONL, JSON, Parquet, CSV, `datasets`, the hub.

    verifier: exact, numeric, math_verify, regex, choice, f1, or {name: {settings}}, against the answer column; without
    one, name reward functions. held_out: a fraction, a number of rows, or the path of a separate source. solution: the
    column of reference completions for a warm start, where there is one. verl's `reward_model.ground_truth` is the
    answer where there is no answer column.
    """
    rows = [_row(dict(r), prompt, answer, path, i) for i, r in enumerate(load_rows(path, split=split))]
    if isinstance(held_out, str):
        held = [_row(dict(r), prompt, answer, held_out, i) for i, r in enumerate(load_rows(held_out, split="test"))]
    else:
        rows, held = _cut(rows, held_out, seed, path)
    train, notes = disjoint(rows, held, path)
    has_solutions = all(solution in r for r in train)
    reference = (lambda row: str(row[solution])) if has_solutions else None
    out = Task("jsonl", train[:limit], held, reference=reference, notes=notes)
    if verifier is not None:
        if not all(answer in r for r in train):
            raise DataError(
                f"the verifier compares with column '{answer}', which some rows lack", where=path,
                hint=did_you_mean(answer, train[0]) + "; task.answer=COLUMN",
            )  # fmt: skip
        reward = verifier_reward(verifier, answer)
        out.rewards, out.verdict = [reward], reward.name
        out.verify = _verifier(reward)
        out.reference = reference or (lambda row: str(row[answer]))
        out.corrupt = lambda row, n: _wrong(str(row[answer]), n)
    return out


def _verifier(reward: Any) -> Any:
    """verify(completion, row), through the runner, so that a verifier that may hang runs where it can be killed."""
    runner = RewardRunner([reward])
    assert isinstance(reward.fn, Verdict)

    def verify(completion: str, row: Row) -> bool:
        value = runner.score([row["prompt"]], [completion], [row], [[]]).components[reward.name][0]
        return value > 0.5

    return verify


def _row(raw: Row, prompt: str, answer: str, where: str, number: int) -> Row:
    if prompt not in raw:
        raise DataError(
            f"row {number + 1} has no column '{prompt}'", where=where,
            hint=did_you_mean(prompt, raw) + "; task.prompt=COLUMN",
        )  # fmt: skip
    text = raw.pop(prompt)
    messages = isinstance(text, list | tuple) and all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in text
    )
    if not isinstance(text, str) and not (messages and text):
        raise DataError(
            f"the prompt of row {number + 1} is neither text nor a list of messages", where=where,
            hint="[{\"role\": \"user\", \"content\": …}]",
        )  # fmt: skip
    graded = raw.get("reward_model")
    if answer not in raw and isinstance(graded, dict) and "ground_truth" in graded:
        raw[answer] = graded["ground_truth"]
    return {**raw, "prompt": text if isinstance(text, str) else [dict(m) for m in text]}


def _cut(rows: list[Row], held_out: float | int, seed: int, where: str) -> tuple[list[Row], list[Row]]:
    count = int(held_out) if held_out >= 1 or held_out == 0 else max(int(len(rows) * held_out), 1)
    if count >= len(rows):
        raise RecipeError(
            f"{count} rows held out of {len(rows)} leave nothing to train on", where=where, hint="task.held_out=0.1"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


def _wrong(answer: str, seed: int) -> str:
    """A wrong answer: the number plus something, or text turned around."""
    try:
        return str(float(answer) + 1 + seed % 7)
    except ValueError:
        return f"not {answer}" if answer == answer[::-1] else answer[::-1]
