"""Countdown: make a target from given numbers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.expressions import MAX_LENGTH, NotAnExpression, evaluate, numbers_in
from coterie.tasks.split import Row, generate

ATTEMPTS = 10_000
"""Random expressions tried for one problem before the settings are refused."""


@task()
def countdown(
    *,
    numbers: int = 3,
    max_number: int = 9,
    operators: str = "+-*",
    max_target: int = 99,
    use_all: bool = True,
    train: int = 2048,
    held_out: int = 256,
    seed: int = 0,
) -> Task:
    """Write an expression over the given numbers that equals the target: '2 3 7 = 13:' -> '2*3+7'.

    use_all: every number exactly once, else at most once. Every problem is solvable, and the verifier computes in exact
    rational arithmetic. The same numbers in another order are the same problem when problems are held out.
    """
    if not operators or set(operators) - set("+-*/"):
        raise RecipeError(f"operators of countdown are any of +-*/, got {operators!r}", hint="task.operators='+-*/'")
    if numbers < 2 or max_number < 1 or numbers * (len(str(max_number)) + 1) > MAX_LENGTH:
        raise RecipeError(
            f"countdown takes at least 2 numbers, in expressions of at most {MAX_LENGTH} characters, "
            f"got numbers={numbers} max_number={max_number}"
        )

    def make(rng: np.random.Generator) -> Row:
        for _ in range(ATTEMPTS):
            given = [int(n) for n in rng.integers(1, max_number + 1, numbers)]
            expression, value = _random_expression(given, operators, rng)
            if value is not None and value.denominator == 1 and 0 <= value <= max_target:
                prompt = f"{' '.join(map(str, given))} = {value}:"
                return {"prompt": prompt, "numbers": given, "target": int(value), "solution": expression}
        raise RecipeError(
            f"no expression over {numbers} numbers up to {max_number} has a value from 0 to {max_target} in "
            f"{ATTEMPTS} attempts", hint="raise max_target, or lower numbers and max_number",
        )  # fmt: skip

    rows, held = generate(make, train, held_out, seed, key=_problem)

    def verify(completion: str, row: Row) -> bool:
        return solves(completion, row["numbers"], row["target"], use_all=use_all)

    return Task(
        "countdown", rows, held, verify=verify, verdict="correct",
        rewards=[WeightedReward(verify, "correct", per_sample=True)],
        reference=lambda row: row["solution"], corrupt=_corrupt, vocabulary="0123456789+-*/()= :",
    )  # fmt: skip


def solves(expression: str, numbers: list[int], target: int, *, use_all: bool = True) -> bool:
    """Whether an expression uses the numbers exactly once (at most once) each and equals the target, exactly."""
    try:
        used, value = Counter(numbers_in(expression)), evaluate(expression)
    except NotAnExpression:
        return False
    given = Counter(numbers)
    return value == target and (used == given if use_all else used <= given)


def _problem(row: Row) -> tuple[int, ...]:
    return (row["target"], *sorted(row["numbers"]))


def _random_expression(given: list[int], operators: str, rng: np.random.Generator) -> tuple[str, Fraction | None]:
    """The numbers in random order joined by random operators, read with the usual precedence."""
    order = rng.permutation(len(given))
    text = str(given[order[0]])
    for i in order[1:]:
        text += operators[rng.integers(len(operators))] + str(given[i])
    try:
        return text, evaluate(text)
    except NotAnExpression:
        return text, None


def _corrupt(row: Row, seed: int) -> str:
    """Right value, wrong numbers; or right numbers, wrong value."""
    return f"{row['target']}+0" if seed % 2 and 0 not in row["numbers"] else row["solution"] + "+1"
