"""Small rooms of Sokoban."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.sokoban import LEGEND, Sokoban, solution
from coterie.environments.text_world import opening
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def sokoban(
    *,
    size: int = 4,
    boxes: int = 1,
    walls: int = 1,
    turns: int = 12,
    chat: bool = False,
    train: int = 400,
    held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Push the box onto the goal: up, down, left, right, one a turn.

    size: cells a side, inside the walls. walls: cells that are walls inside. turns: the most steps; every room can be
    solved in as many. chat: prompts are conversations.
    """
    if not 3 <= size <= 7 or not 1 <= boxes <= 2 or walls < 0 or 2 * boxes + walls + 1 > size * size // 2 or turns < 3:
        raise RecipeError(
            "sokoban has rooms of 3 to 7 cells a side, 1 or 2 boxes that leave room, and 3 turns or more, got "
            f"{size=}, {boxes=}, {walls=}, {turns=}"
        )

    def make(rng: np.random.Generator) -> Row:
        while True:
            cells = [" "] * (size * size)
            places = rng.permutation(size * size).tolist()
            for place, sign in zip(places, "@" + "$" * boxes + "." * boxes + "#" * walls, strict=False):
                cells[place] = sign
            inside = ["#" + "".join(cells[i : i + size]) + "#" for i in range(0, size * size, size)]
            grid = "\n".join(["#" * (size + 2), *inside, "#" * (size + 2)])
            if solution(grid, turns) is not None:
                return {"prompt": opening(f"{LEGEND}\n{grid}", chat=chat), "grid": grid}

    def script(row: Row, observations: Sequence[Any]) -> str:
        steps = solution(row["grid"], turns)
        assert steps is not None
        return steps[len(observations)]

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "sokoban", rows, held, rewards=[WeightedReward(episode_return, "return")], script=script,
        world=World(Sokoban, turns=turns),
    )  # fmt: skip
