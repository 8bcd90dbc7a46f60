"""The iterated prisoner's dilemma: the smallest world of two agents."""

from __future__ import annotations

from functools import partial

from coterie.environments.base import World, episode_return
from coterie.environments.dilemma import COOPERATE, DEFECT, PLAYERS, Dilemma
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task


@task()
def dilemma(
    *,
    rounds: int = 4,
    together: float = 3.0,
    exploited: float = 0.0,
    exploits: float = 5.0,
    apart: float = 1.0,
    train: int = 64,
    held_out: int = 16,
) -> Task:
    """Two players, left and right, choose c or d at once, round after round, and see what the other did: 'l>' -> 'c',
    'd>' -> 'd' …

    rounds: how many. What a round pays me: `together` if both cooperate, `apart` if neither does, `exploits` if I alone
    defect, `exploited` if I alone cooperate. All prompts are the same game.
    """
    if rounds < 1 or not exploited < apart < together < exploits:
        raise RecipeError(
            f"no dilemma of {rounds} rounds with payoffs {exploited:g} < {apart:g} < {together:g} < {exploits:g}",
            hint="exploited=0 apart=1 together=3 exploits=5",
        )
    payoffs = (together, exploited, exploits, apart)
    rows = [{"prompt": ">", "prompts": {name: f"{name[0]}>" for name in PLAYERS}} for _ in range(train + held_out)]
    return Task(
        "dilemma", rows[:train], rows[train:], rewards=[WeightedReward(episode_return, "return")],
        world=World(partial(Dilemma, rounds, payoffs), turns=rounds, turn_tokens=1, agents=PLAYERS),
        vocabulary=COOPERATE + DEFECT + "lr>",
    )  # fmt: skip
