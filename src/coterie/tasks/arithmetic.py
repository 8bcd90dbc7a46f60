"""Evaluate small expressions."""

from __future__ import annotations

import re

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.expressions import MAX_DIGITS, MAX_LENGTH, evaluate
from coterie.tasks.split import Row, generate


@task()
def arithmetic(
    *, terms: int = 2, digits: int = 2, operators: str = "+-", train: int = 4096, held_out: int = 256, seed: int = 0
) -> Task:
    """Evaluate an expression of `terms` numbers of up to `digits` digits: '12+7-3=' -> '16'. operators: any of +-*.

    The same signed products in another order (7+12 and 12+7) are the same problem when problems are held out.
    """
    if not operators or set(operators) - set("+-*"):
        raise RecipeError(f"operators of arithmetic are any of +-*, got {operators!r}", hint="task.operators='+-*'")
    if not 1 <= digits <= MAX_DIGITS or terms < 1 or terms * (digits + 1) > MAX_LENGTH:
        raise RecipeError(
            f"arithmetic takes 1 to {MAX_DIGITS} digits and expressions of at most {MAX_LENGTH} characters, "
            f"got digits={digits} terms={terms}"
        )

    def make(rng: np.random.Generator) -> Row:
        text = str(rng.integers(0, 10**digits))
        for _ in range(terms - 1):
            text += operators[rng.integers(len(operators))] + str(rng.integers(0, 10**digits))
        value = evaluate(text)
        return {"prompt": f"{text}=", "answer": str(value)}

    rows, held = generate(make, train, held_out, seed, key=_problem)
    return Task(
        "arithmetic", rows, held, verify=_verdict, verdict="correct",
        rewards=[WeightedReward(_verdict, "correct", per_sample=True)],
        reference=lambda row: row["answer"], corrupt=lambda row, seed: str(int(row["answer"]) + 1 + seed % 9),
        vocabulary="0123456789+-*=",
    )  # fmt: skip


def _problem(row: Row) -> tuple[tuple[str, ...], ...]:
    """The signed products that are added up, in a fixed order: the sign, then the factors."""
    signed = re.findall(r"([-+]?)([^-+=]+)", row["prompt"])
    return tuple(sorted((sign or "+", *sorted(product.split("*"))) for sign, product in signed))


def _verdict(completion: str, row: Row) -> bool:
    return completion.strip() == row["answer"]
