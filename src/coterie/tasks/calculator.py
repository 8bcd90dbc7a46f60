"""Sums too hard to do in the head, with a tool that does them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.calculator import ANSWER, ASK, END, Calculator
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def calculator(*, digits: int = 2, turns: int = 3, train: int = 2000, held_out: int = 100, seed: int = 0) -> Task:
    """Multiply two numbers: '37*84>' -> '?37*84', answered '3108>' by Python in the sandbox, -> '!3108'.

    digits: of each factor. turns: calls and the answer together. Needs a sandbox (`coterie doctor` says whether there
    is one).
    """
    if not 1 <= digits <= 5 or turns < 2:
        raise RecipeError(f"calculator has factors of 1 to 5 digits and 2 turns or more, got {digits} and {turns}")

    def make(rng: np.random.Generator) -> Row:
        a, b = rng.integers(10 ** (digits - 1), 10**digits, 2).tolist()
        return {"prompt": f"{a}*{b}{END}", "answer": str(a * b)}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "calculator", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(Calculator, turns=turns, turn_tokens=2 * digits + 3),
        vocabulary=string.digits + "-*e" + ASK + ANSWER + END,
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    return ANSWER + observations[-1].rstrip(END) if observations else ASK + row["prompt"].rstrip(END)
