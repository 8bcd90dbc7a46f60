"""Guess a number in a few turns: who halves the range finds it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.guess_number import GuessNumber, show
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def guess_number(
    *,
    turns: int = 4,
    largest: int = 99,
    settled: bool = True,
    train: int = 200,
    held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Find a number in a range: '10-20>' -> '15'; the answer is the range that is left, '10-14>'.

    turns: the most guesses. A range has 2^turns - 1 numbers at the most, so that halving always finds it in time, and
    more than half as many. largest: the largest number, below 100. settled=false: the number is not chosen before it
    must be, each answer leaves the larger part; so nobody is lucky. train and held_out: ranges. Each number of a range
    to train on is the secret of a row, so that a range does not give its secret away.
    """
    most = 2**turns - 1
    if turns < 2 or not most <= largest < 100:
        raise RecipeError(
            f"guess-number needs turns of 2 or more and a largest number from {most} to 99, got {largest}"
        )

    def make(rng: np.random.Generator) -> Row:
        count = int(rng.integers(most // 2 + 1, most + 1))
        low = int(rng.integers(0, largest - count + 2))
        high = low + count - 1
        return {"prompt": show(low, high), "low": low, "high": high, "secret": int(rng.integers(low, high + 1))}

    ranges, held = generate(make, train, held_out, seed)
    if settled:
        rows = [{**row, "secret": secret} for row in ranges for secret in range(row["low"], row["high"] + 1)]
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    else:
        rows, held = ([{**row, "secret": None} for row in part] for part in (ranges, held))
    return Task(
        "guess-number", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(GuessNumber, turns=turns, turn_tokens=2), vocabulary=string.digits + "->",
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    low, high = (observations[-1] if observations else row["prompt"])[:-1].split("-")
    return f"{(int(low) + int(high)) // 2:02}"
