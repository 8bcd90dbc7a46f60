"""Trust-and-Split against a partner who is fair to the fair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.text_world import opening
from coterie.environments.trust_and_split import COINS, HANDS, HELP, TrustAndSplit, values
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

_RULES = (
    "In each of {} rounds you and somebody else split 10 coins. Both have a hand; who wins rock, paper, scissors gets "
    "10 for a coin, the other 1. You may say something, then both name how many coins they keep; shares are cut where "
    "that is too much. Your hand is {}. {}"
)


@task()
def trust_and_split(
    *, rounds: int = 4, chat: bool = False, train: int = 300, held_out: int = 60, seed: int = 0
) -> Task:
    """Tell your hand, then keep the coins that are worth more to you and leave the others.

    rounds: of an episode, each two turns. chat: prompts are conversations.
    """
    if not 2 <= rounds <= 20:
        raise RecipeError(f"rounds are 2 to 20, got {rounds}")

    def make(rng: np.random.Generator) -> Row:
        drawn = [rng.choice(HANDS, 2, replace=False).tolist() for _ in range(rounds)]
        if all(values(*hands)[0] == 1 for hands in drawn):
            drawn[-1].reverse()  # who would win nothing could not succeed
        prompt = opening(_RULES.format(rounds, drawn[0][0], HELP), chat=chat)
        return {"prompt": prompt, "hands": drawn}

    def key(row: Row) -> str:
        return str(row["hands"])

    kept, held = generate(make, train, held_out, seed, key=key, distinct=key)
    return Task(
        "trust-and-split", kept, held, rewards=[WeightedReward(episode_return, "points")], script=_script,
        world=World(TrustAndSplit, turns=2 * rounds + 2),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """Say the truth, keep all or nothing."""
    ours, theirs = row["hands"][len(observations) // 2]
    if len(observations) % 2 == 0:
        return f"say my hand is {ours}"
    return f"keep {COINS if values(ours, theirs)[0] == 10 else 0}"
