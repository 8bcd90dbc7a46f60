"""Sums too hard to do in the head, with a tool that does them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.calculator import ANSWER, ASK, END, Calculator
from coterie.environments.self_verified import CUE, SelfVerified, outcome, repairs, steps
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def calculator(
    *,
    digits: int = 2,
    turns: int = 3,
    verifies: bool = False,
    train: int = 2000,
    held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Multiply two numbers: '37*84>' -> '?37*84', answered '3108>' by Python in the sandbox, -> '!3108'.

    digits: of each factor. turns: calls and the answer together. verifies: after each of these, behind 'v', the policy
    writes a verdict on it, '+1,0.9', that it is paid for (Agent0-VL, `coterie.environments.self_verified`). Needs a
    sandbox (`coterie doctor` says whether there is one).
    """
    if not 1 <= digits <= 5 or turns < 2:
        raise RecipeError(f"calculator has factors of 1 to 5 digits and 2 turns or more, got {digits} and {turns}")

    def make(rng: np.random.Generator) -> Row:
        a, b = rng.integers(10 ** (digits - 1), 10**digits, 2).tolist()
        return {"prompt": f"{a}*{b}{END}", "answer": str(a * b)}

    rows, held = generate(make, train, held_out, seed)
    if verifies:
        rewards = [
            WeightedReward(outcome, "outcome"),
            WeightedReward(steps, "steps"),
            WeightedReward(repairs, "repairs", weight=0.0),
        ]
        return Task(
            "calculator", rows, held, rewards=rewards, script=_verified_script,
            world=World(partial(SelfVerified, Calculator), turns=2 * turns, turn_tokens=max(2 * digits + 3, 8)),
            vocabulary=string.digits + "-*e+.,r" + ASK + ANSWER + END + CUE,
        )  # fmt: skip
    return Task(
        "calculator", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(Calculator, turns=turns, turn_tokens=2 * digits + 3),
        vocabulary=string.digits + "-*e" + ASK + ANSWER + END,
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    return ANSWER + observations[-1].rstrip(END) if observations else ASK + row["prompt"].rstrip(END)


def _verified_script(row: Row, observations: Sequence[Any]) -> str:
    """Every other turn is a verdict, and all is well."""
    if len(observations) % 2:
        return "+1,1"
    return _script(row, [observations[-2].removesuffix(CUE)] if observations else [])
