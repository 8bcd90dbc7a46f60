"""GSM8K: grade-school word problems (arXiv:2110.14168)."""

from __future__ import annotations

import re
from fractions import Fraction

from coterie.errors import DataError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.rewards.numbers import boxed, last_number, parse_number
from coterie.tasks.base import Row, Task, disjoint
from coterie.tasks.sources import load_rows

_MARKED = re.compile(r"####\s*([^\n]+)")


@task(paper="arXiv:2110.14168")
def gsm8k(
    *,
    source: str = "openai/gsm8k",
    config: str | None = "main",
    prompt: str = "{question}\nThink step by step, then give the final answer after '####'.\n",
    chat: bool = False,
    limit: int | None = None,
    held_out: int | None = None,
) -> Task:
    """Word problems with one number as the answer. source: hub name, or a folder with train and test files, or saved.

    The answer of a completion is what follows the last '####', else the last \\boxed{…}, else its last number; it is
    compared as an exact number. The test split is held out. prompt: a format with {question}; chat: make it the user's
    message of a conversation.
    """
    train = [_row(r, prompt, chat, source, i) for i, r in enumerate(load_rows(source, split="train", config=config))]
    test = [_row(r, prompt, chat, source, i) for i, r in enumerate(load_rows(source, split="test", config=config))]
    held = test[:held_out] if held_out is not None else test
    kept, notes = disjoint(train, held, source)
    return Task(
        "gsm8k", kept[:limit], held, verify=verify, verdict="correct",
        rewards=[WeightedReward(verify, "correct", per_sample=True)],
        reference=lambda row: row["solution"], corrupt=_corrupt, notes=notes,
    )  # fmt: skip


def final_answer(text: str) -> Fraction | None:
    """The number a completion ends in: after the last '####', else in the last \\boxed{…}, else the last number."""
    marked = _MARKED.findall(text)
    if marked:
        return parse_number(marked[-1]) or last_number(marked[-1])
    inside = boxed(text)
    if inside is not None:
        return parse_number(inside) or last_number(inside)
    return last_number(text)


def verify(completion: str, row: Row) -> bool:
    """Whether the completion's final answer is the row's, as exact numbers."""
    got = final_answer(completion)
    return got is not None and got == parse_number(row["answer"])


def _row(raw: Row, prompt: str, chat: bool, source: str, number: int) -> Row:
    for column in ("question", "answer"):
        if column not in raw:
            raise DataError(f"row {number} has no '{column}'", where=source, hint=f"it has: {', '.join(raw)}")
    solution = re.sub(r"<<[^>]*>>", "", raw["answer"])
    marked = _MARKED.findall(solution)
    if not marked or parse_number(marked[-1]) is None:
        raise DataError(f"row {number}: no number after '####' in its answer", where=source)
    text = prompt.format(question=raw["question"])
    return {
        "prompt": [{"role": "user", "content": text}] if chat else text,
        "answer": marked[-1].strip(),
        "solution": solution,
    }


def _corrupt(row: Row, seed: int) -> str:
    value = parse_number(row["answer"])
    assert value is not None
    wrong = value + 1 + seed % 7
    return _MARKED.sub(f"#### {wrong}", row["solution"])
