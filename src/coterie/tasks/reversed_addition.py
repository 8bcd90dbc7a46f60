"""Add two numbers, digits written backwards, so that each digit follows from what is already there."""

from __future__ import annotations

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def reversed_addition(*, digits: int = 4, train: int = 4096, held_out: int = 256, seed: int = 0) -> Task:
    """Add numbers of up to `digits` digits, least significant first: '21+9=' (12 + 9) -> '12' (21).

    A sum and its mirror image, a+b and b+a, are the same problem when problems are held out.
    """
    if not 1 <= digits <= 18:
        raise RecipeError(f"reversed addition takes 1 to 18 digits, got {digits}")

    def make(rng: np.random.Generator) -> Row:
        a, b = (int(x) for x in rng.integers(0, 10**digits, 2))
        return {"prompt": f"{str(a)[::-1]}+{str(b)[::-1]}=", "answer": str(a + b)[::-1]}

    rows, held = generate(make, train, held_out, seed, key=lambda row: frozenset(row["prompt"][:-1].split("+")))
    return Task(
        "reversed-addition", rows, held, verify=_verdict, verdict="correct",
        rewards=[WeightedReward(_verdict, "correct", per_sample=True)],
        reference=lambda row: row["answer"], corrupt=_off_by_one, vocabulary="0123456789+=",
    )  # fmt: skip


def _verdict(completion: str, row: Row) -> bool:
    return completion.strip() == row["answer"]


def _off_by_one(row: Row, seed: int) -> str:
    return str(int(row["answer"][::-1]) + 1 + seed % 9)[::-1]
