"""Draw so many cells of each colour, then tell from the picture how many there are: the answer is known beforehand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from coterie.environments.base import Episode, World, episode_return
from coterie.environments.pictures import PAINTER, READER, DrawAndRead
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.redraw import draws
from coterie.tasks.split import Row

COLOURS = "rgby"


@task()
def draw_and_read(
    *, cells: int = 3, colours: int = 2, answers: int = 1, train: int = 64, held_out: int = 16, seed: int = 0
) -> Task:
    """Two agents: draw sees '21>' and says 'rgr' (2 r, 1 g, in any order), read sees '?rgr g>' and says '1'.

    cells: of a picture. colours: 2 to 4. answers: how often each picture is asked about. A drawing earns the share of
    its cells that fit, an answer 1 where it is the number that was to be drawn. Rewards with weight 0 annotate: `draws`
    says which agent a rollout is of, `picture` how much of the picture fits, and `answer` whether the answer is right,
    for a drawing the mean over its answers. Prompts come again and again, held-out ones too: there are few.
    """
    if not 2 <= colours <= len(COLOURS) or not 1 <= cells <= 9 or answers < 1:
        raise RecipeError(
            f"pictures of {cells} cells in {colours} colours with {answers} answers",
            where="task=draw-and-read",
            hint="cells=3 (at most 9) colours=2 (to 4) answers=1",
        )

    def make(rng: np.random.Generator) -> Row:
        drawn = rng.integers(0, colours, cells)
        counts = {name: int((drawn == i).sum()) for i, name in enumerate(COLOURS[:colours])}
        prompt = "".join(map(str, counts.values())) + ">"
        return {"prompt": prompt, "prompts": {READER: "?"}, "counts": counts,
                "asked": COLOURS[int(rng.integers(colours))]}  # fmt: skip

    rng = np.random.default_rng(seed)
    rows = [make(rng) for _ in range(train + held_out)]
    return Task(
        "draw-and-read", rows[:train], rows[train:],
        rewards=[
            WeightedReward(episode_return, "own"),
            WeightedReward(draws, "draws", weight=0.0),
            WeightedReward(partial(_known, "picture"), "picture", weight=0.0),
            WeightedReward(partial(_known, "answer"), "answer", weight=0.0),
        ],
        world=World(partial(DrawAndRead, answers), turns=1 + answers, turn_tokens=cells, agents=(PAINTER, READER)),
        vocabulary=COLOURS[:colours] + "0123456789"[: cells + 1] + "?> ",
    )  # fmt: skip


def _known(what: str, completions: list[Any], episode: list[Episode], **columns: Any) -> list[float | None]:
    return [None if e.failed is not None or not e.infos else float(e.infos[-1][what]) for e in episode]
