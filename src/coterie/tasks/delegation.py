"""A sum of two numbers that only others know: the smallest world of a main agent and its sub-agents."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.delegation import END, MAIN, SUBS, Delegation
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def delegation(
    *,
    letters: int = 3,
    values: int = 4,
    calls: int = 3,
    ask: float = 0.25,
    share: float = 0.5,
    train: int = 2000,
    held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Add two numbers that others know. The main agent reads 'bC>', asks 'b', hears '2>' from left, whose card says
    'a0b2c1>', asks 'C', hears '1>' from right, and answers '3'.

    letters: on each card, small ones on left's, capitals on right's. values: numbers are below it. calls: the most that
    the main agent may make. ask: what the main agent earns for asking for a letter that it needs. share: what a
    sub-agent earns of a right answer, beside 1 for reading its card right.
    """
    if not 1 <= letters <= 9 or not 2 <= values <= 5 or calls < 2:
        raise RecipeError(
            f"delegation has 1 to 9 letters, 2 to 5 values and 2 calls or more, got {letters}, {values} and {calls}"
        )
    of = dict(zip(SUBS, (string.ascii_lowercase[:letters], string.ascii_uppercase[:letters]), strict=True))

    def make(rng: np.random.Generator) -> Row:
        cards = {name: {letter: str(rng.integers(values)) for letter in own} for name, own in of.items()}
        wanted = "".join(own[rng.integers(letters)] for own in of.values())
        known = {k: v for card in cards.values() for k, v in card.items()}
        texts = {name: "".join(k + v for k, v in card.items()) + END for name, card in cards.items()}
        answer = str(sum(int(known[letter]) for letter in wanted))
        return {"prompt": wanted + END, "prompts": texts, "cards": cards, "wanted": wanted, "answer": answer}

    def key(row: Row) -> str:
        return "".join(row["prompts"].values()) + row["wanted"]

    rows, held = generate(make, train, held_out, seed, key=key, distinct=key)
    return Task(
        "delegation", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(partial(Delegation, ask, share), turns=2 * calls + 1, turn_tokens=1, agents=(MAIN, *SUBS)),
        vocabulary=string.digits[: 2 * values - 1] + "".join(of.values()) + END,
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """The main agent asks for each letter in turn and answers; a sub-agent reads its card."""
    if row["agent"] != MAIN:
        return row["cards"][row["agent"]][observations[0].rstrip(END)]
    heard = len(observations) - 1
    return row["wanted"][heard] if heard < len(row["wanted"]) else row["answer"]
