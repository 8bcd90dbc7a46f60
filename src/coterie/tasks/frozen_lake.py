"""Walk over the ice to the goal: the smallest task of many turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.frozen_lake import MOVES, FrozenLake, show, way
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def frozen_lake(
    *,
    size: int = 3,
    holes: int = 2,
    turns: int | None = None,
    train: int = 800,
    held_out: int = 200,
    seed: int = 0,
) -> Task:
    """Walk from a to g past the holes, one letter a turn: u, d, l or r. 'ao./.../.og>' -> 'd', then the grid again.

    size: cells a side. holes: how many. turns: the most steps, by default as many as the grid has cells, less the
    holes. The ice is not slippery. Every grid has a way to its goal.
    """
    if size < 2 or not 0 <= holes <= size * size - 2:
        raise RecipeError(
            f"a lake has 2 cells a side or more and room for start and goal, got {size} and {holes} holes"
        )

    def make(rng: np.random.Generator) -> Row:
        while True:
            places = rng.permutation(size * size).tolist()
            cells = ["."] * (size * size)
            for place in places[2 : 2 + holes]:
                cells[place] = "o"
            cells[places[1]] = "g"
            grid = ["".join(cells[i : i + size]) for i in range(0, size * size, size)]
            start = divmod(places[0], size)
            if way(show(grid, start)):
                return {"prompt": show(grid, start), "grid": "/".join(grid), "start": list(start)}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "frozen-lake", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(FrozenLake, turns=turns or size * size - holes, turn_tokens=1),
        vocabulary="".join(MOVES) + "aog./>",
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    return way(observations[-1] if observations else row["prompt"])
