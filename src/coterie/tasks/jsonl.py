"""Your own data: any file or dataset with a prompt column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.errors import DataError, did_you_mean
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward, verifier_reward
from coterie.rewards.numbers import parse_number
from coterie.rewards.runner import RewardRunner
from coterie.tasks.base import Task
from coterie.tasks.sources import load_rows
from coterie.tasks.split import Row, disjoint, first, split_disjoint


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
    column of reference completions, where there is one, for a warm start (every row has one) and as demonstrations
    (some have). verl's `reward_model.ground_truth` is the answer where there is no answer column.
    """
    rows = _rows(path, split, prompt, answer)
    if isinstance(held_out, str):
        held = _rows(held_out, "test", prompt, answer)
        train, notes = disjoint(rows, held, path)
    else:
        train, held, notes = split_disjoint(rows, held_out, seed, path)
    out = Task("jsonl", first(train, limit, "limit"), held, notes=notes)
    if all(isinstance(r.get(solution), str) for r in (*train, *held)):
        out.reference = lambda row: row[solution]
    elif any(isinstance(r.get(solution), str) for r in out.train):
        out.demonstration = lambda row: row[solution] if isinstance(row.get(solution), str) else None
    if verifier is not None:
        reward = verifier_reward(verifier, answer)
        _check_answers(train, answer, path)
        _check_answers(held, answer, held_out if isinstance(held_out, str) else path)
        out.rewards, out.verdict, out.verify = [reward], reward.name, _verdict_of(reward)
        out.answer = getattr(reward.fn.verifier, "answer", None)  # type: ignore[attr-defined]
        if not _is_pattern(reward):
            answers = list(dict.fromkeys(str(r[answer]) for r in (*train, *held)))
            places = {text: i for i, text in enumerate(answers)}
            out.reference = out.reference or (lambda row: str(row[answer]))
            out.corrupt = (lambda row, n: _wrong(str(row[answer]), answers, places, n)) if len(answers) > 1 else None
    return out


def _verdict_of(reward: WeightedReward) -> Callable[[str, Row], bool]:
    """verify(completion, row), through the runner, so that a verifier that may hang runs where it can be killed."""
    runner = RewardRunner([reward])

    def verify(completion: str, row: Row) -> bool:
        return runner.score([row["prompt"]], [completion], [row], [[]]).components[reward.name][0] > 0.5

    return verify


def _is_pattern(reward: WeightedReward) -> bool:
    """Whether the answer column holds regular expressions, which are no completions."""
    return reward.name == "regex" and reward.fn.settings["pattern"] is None  # type: ignore[attr-defined]


def _rows(path: str, split: str, prompt: str, answer: str) -> list[Row]:
    return [_row(dict(r), prompt, answer, path, number) for number, r in enumerate(load_rows(path, split=split), 1)]


def _row(raw: Row, prompt: str, answer: str, where: str, number: int) -> Row:
    if prompt not in raw:
        raise DataError(
            f"row {number} has no column '{prompt}'", where=where,
            hint=did_you_mean(prompt, raw) + "; task.prompt=COLUMN",
        )  # fmt: skip
    text = raw.pop(prompt)
    if not isinstance(text, str):
        if not isinstance(text, list | tuple) or not text or not all(_is_message(m) for m in text):
            raise DataError(
                f"the prompt of row {number} is neither text nor a list of messages", where=where,
                hint='write a conversation as [{"role": "user", "content": …}]',
            )  # fmt: skip
        text = [dict(m) for m in text]
    graded = raw.get("reward_model")
    if answer not in raw and isinstance(graded, dict) and "ground_truth" in graded:
        raw[answer] = graded["ground_truth"]
    return {**raw, "prompt": text}


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= set(value)


def _check_answers(rows: list[Row], answer: str, where: str) -> None:
    """Every row has a text or number to compare with. Raises DataError naming the first that has not."""
    for row in rows:
        value = row.get(answer)
        if isinstance(value, str | int | float):
            continue
        problem = f"is a {type(value).__name__}, not text or a number" if value is not None else "is missing"
        raise DataError(
            f"the answer (column '{answer}') of prompt {str(row['prompt'])[:60]!r} {problem}", where=where,
            hint=did_you_mean(answer, set(row) - {"prompt"}) + "; task.answer=COLUMN",
        )  # fmt: skip


def _wrong(answer: str, answers: list[str], places: dict[str, int], seed: int) -> str:
    """A wrong answer: the number plus something, else another answer of the data."""
    number = parse_number(answer)
    if number is not None:
        return str(number + 1 + seed % 7)
    return answers[(places[answer] + 1 + seed % (len(answers) - 1)) % len(answers)]
