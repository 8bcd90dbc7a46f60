"""GSM8K: grade-school word problems (arXiv:2110.14168)."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from coterie.errors import DataError, RecipeError, did_you_mean
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.rewards.numbers import boxed, first_number, last_number, parse_number
from coterie.tasks.base import Task
from coterie.tasks.sources import load_rows
from coterie.tasks.split import Row, disjoint, first, split_disjoint

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
    seed: int = 0,
) -> Task:
    """Word problems with one number as the answer. source: hub name, folder with train and test files, saved, one file.

    The answer of a completion is the number after the last '####', else in the last \\boxed{…}, else its last number;
    it is compared exactly. held_out: how many problems of the test split are held out (all of it); of one file, how
    many of its rows (a tenth). prompt: a text with {question} in it; chat: make it the user's message of a
    conversation.
    """
    if "{question}" not in prompt:
        raise RecipeError("the prompt of gsm8k has no {question} in it", hint="task.prompt='{question}\\n'")

    def rows(split: str) -> list[Row]:
        raw = load_rows(source, split=split, config=config)
        return [_row(r, prompt, chat, source, number) for number, r in enumerate(raw, 1)]

    if Path(source).expanduser().is_file():
        kept, held, notes = split_disjoint(rows("train"), 0.1 if held_out is None else held_out, seed, source)
    else:
        held = first(rows("test"), held_out, "held_out", least=0)
        kept, notes = disjoint(rows("train"), held, source)
    return Task(
        "gsm8k", first(kept, limit, "limit"), held, verify=verify, verdict="correct",
        rewards=[WeightedReward(verify, "correct", per_sample=True)],
        reference=lambda row: row["solution"], corrupt=_corrupt, notes=notes,
        answer=lambda text: str(final_answer(text)),
    )  # fmt: skip


def final_answer(text: str) -> Fraction | None:
    """The number after the last '####', else the last of the last \\boxed{…}, else the last of the text.

    Commas, $, %, units and a closing period are understood: '#### $1,200.50 per month.' is 1200.5.
    """
    marked = _MARKED.findall(text)
    if marked:
        return first_number(marked[-1])
    inside = boxed(text)
    return last_number(text if inside is None else inside)


def verify(completion: str, row: Row) -> bool:
    """Whether the completion's final answer is the row's, as exact numbers."""
    got = final_answer(completion)
    return got is not None and got == parse_number(row["answer"])


def _row(raw: Row, prompt: str, chat: bool, source: str, number: int) -> Row:
    for column in ("question", "answer"):
        if column not in raw:
            raise DataError(f"row {number} has no '{column}'", where=source, hint=did_you_mean(column, raw))
    solution = re.sub(r"<<[^>]*>>", "", raw["answer"])
    marked = _MARKED.findall(solution)
    if not marked or parse_number(marked[-1]) is None:
        raise DataError(f"row {number}: no number after '####' in its answer", where=source)
    text = prompt.replace("{question}", raw["question"])
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
