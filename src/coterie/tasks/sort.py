"""Sort digits: the smallest task with a curve."""

from __future__ import annotations

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def sort(
    *,
    digits: int = 5,
    alphabet: str = "0123456789",
    train: int = 4096,
    held_out: int = 256,
    dense: bool = False,
    lines: bool = False,
    seed: int = 0,
) -> Task:
    """Write a string of digits in ascending order: '53142>' -> '12345'.

    alphabet: the characters that occur, in the order they sort. dense: reward the share of positions that are right
    instead of all or nothing. lines: each digit stands on a line of its own, so that it is a step of the answer; a step
    scores the share of its positions that are right.
    """
    if digits < 1:
        raise RecipeError(f"sort needs at least 1 digit, got {digits}")
    if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2 or set(alphabet) & set("> \n"):
        raise RecipeError(
            f"the alphabet of sort is two or more different characters without '>' and spaces, got {alphabet!r}"
        )

    between = "\n" if lines else ""

    def make(rng: np.random.Generator) -> Row:
        places = rng.integers(0, len(alphabet), digits).tolist()
        return {
            "prompt": "".join(alphabet[i] for i in places) + ">",
            "answer": between.join(alphabet[i] for i in sorted(places)),
        }

    def swap(row: Row, seed: int) -> str:
        answer = row["answer"]
        place = seed % digits * (1 + len(between))
        other = alphabet[(alphabet.index(answer[place]) + 1) % len(alphabet)]
        return answer[:place] + other + answer[place + 1 :]

    rows, held = generate(make, train, held_out, seed)
    rewards = [WeightedReward(_share if dense else _verdict, "positions" if dense else "correct", per_sample=True)]
    return Task(
        "sort", rows, held, verify=_verdict, rewards=rewards, verdict=None if dense else "correct",
        reference=lambda row: row["answer"], corrupt=swap, vocabulary=f"{alphabet}>{between}",
        process=WeightedReward(_scores, "positions_of_steps", per_step=True),
    )  # fmt: skip


def _verdict(completion: str, row: Row) -> bool:
    return completion.strip() == row["answer"]


def _scores(completions: list[str], completion_steps: list[list[str]], answer: list[str]) -> list[list[float]]:
    """The share of right positions of each line, as far as the answer has lines; further ones score 0."""
    out = []
    for steps, right in zip(completion_steps, answer, strict=True):
        want = [*right.split("\n"), *[""] * len(steps)]
        out.append([_share(step, {"answer": line}) if line else 0.0 for step, line in zip(steps, want, strict=False)])
    return out


def _share(completion: str, row: Row) -> float:
    text, answer = completion.strip(), row["answer"]
    return sum(a == b for a, b in zip(text, answer, strict=False)) / max(len(text), len(answer))
