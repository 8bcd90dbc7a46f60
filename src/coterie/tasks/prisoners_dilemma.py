"""The iterated prisoner's dilemma against partners with different rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.prisoners_dilemma import PARTNERS, WORD, PrisonersDilemma, best_from
from coterie.environments.text_world import opening
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row

_RULES = (
    "You and somebody else choose at once, {} times: both cooperate, 3 points each; both defect, 1 each; who defects "
    "alone has 5, the other none. Commands: cooperate, defect."
)


@task()
def prisoners_dilemma(*, rounds: int = 6, chat: bool = False, held_out: int = 2, seed: int = 0) -> Task:
    """Cooperate or defect, against tit for tat, grudgers, pavlov and others; who it is has to be found out.

    rounds: the most; episodes have up to three less. held_out: partners that are never trained against. chat: prompts
    are conversations.
    """
    if not 2 <= rounds <= 20 or not 1 <= held_out < len(PARTNERS):
        raise RecipeError(f"2 to 20 rounds, 1 to {len(PARTNERS) - 1} partners held out, got {rounds} and {held_out}")
    order = np.random.default_rng(seed).permutation(list(PARTNERS)).tolist()

    def rows(partners: Sequence[str]) -> list[Row]:
        lengths = range(max(rounds - 3, 2), rounds + 1)
        return [
            {"prompt": opening(_RULES.format(n), chat=chat), "partner": partner, "rounds": n}
            for partner in partners
            for n in lengths
        ]

    return Task(
        "prisoners-dilemma", rows(order[held_out:]), rows(order[:held_out]), script=_script,
        rewards=[WeightedReward(episode_return, "points")], world=World(PrisonersDilemma, turns=rounds + 2),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """The best there is, for one who knows the partner."""
    moves = best_from(row["partner"], next(iter(PARTNERS[row["partner"]])), row["rounds"])[1]
    return WORD[moves[len(observations)]]
