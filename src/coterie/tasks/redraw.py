"""Describe a picture in a few characters so that it can be drawn again: understanding and generation in one loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from coterie.environments.base import Episode, World, episode_return
from coterie.environments.pictures import PAINTER, SPEAKER, Redraw
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row

INK = "01"
WORDS = "abcdefgh"


@task()
def redraw(
    *, cells: int = 4, characters: int = 2, drawings: int = 4, train: int = 64, held_out: int = 16, seed: int = 0
) -> Task:
    """Two agents: describe sees '0110>' and says 'cb', draw sees '<cb>' and says '0110'.

    A picture has `cells` cells, 0 or 1. Only `characters` of a description are passed on, so that they must come to
    mean something: there are eight letters, and 0 and 1. Each description is drawn `drawings` times. The reward is the
    share of cells that come back, for a description the mean over its drawings; the reward `draws` with weight 0 says
    which agent a rollout is of. Pictures come again and again, held-out ones too: there are few.
    """
    if not 1 <= characters <= cells <= 12 or drawings < 1:
        raise RecipeError(
            f"a description of {characters} of {cells} cells that is drawn {drawings} times",
            where="task=redraw",
            hint="cells=4 (at most 12) characters=2 drawings=4",
        )

    def make(rng: np.random.Generator) -> Row:
        picture = "".join(rng.choice(list(INK), cells))
        return {"prompt": f"{picture}>", "prompts": {PAINTER: "<"}, "picture": picture}

    rng = np.random.default_rng(seed)
    rows = [make(rng) for _ in range(train + held_out)]
    return Task(
        "redraw", rows[:train], rows[train:],
        rewards=[WeightedReward(episode_return, "alike"), WeightedReward(draws, "draws", weight=0.0)],
        world=World(partial(Redraw, characters, drawings), turns=1 + drawings, turn_tokens=cells,
                    agents=(SPEAKER, PAINTER)),
        vocabulary=INK + WORDS + "<>",
    )  # fmt: skip


def draws(completions: list[Any], agent: list[str], episode: list[Episode], **columns: Any) -> list[float | None]:
    """1 for a rollout of the agent that draws, 0 for one of the other."""
    return [None if e.failed is not None else float(a == PAINTER) for a, e in zip(agent, episode, strict=True)]
