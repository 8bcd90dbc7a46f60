"""Draw so many cells of each colour, then tell from the picture how many there are: the answer is known beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from coterie.environments.base import Episode, World, episode_return
from coterie.environments.pictures import PAINTER, READER, DrawAndRead
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.redraw import divided, draws
from coterie.tasks.split import Row

COLOURS = "rgby"


@task()
def draw_and_read(
    *, cells: int = 4, colours: int = 3, answers: int = 1, train: int = 256, held_out: int = 64, seed: int = 0
) -> Task:
    """Two agents: draw sees '211>' and says 'rgrb' (2 r, 1 g, 1 b, in any order), read sees '?rgrb g>' and says '1'.

    cells: of a picture. colours: 2 to 4. answers: how often each picture is asked about. A drawing earns the share of
    its cells that fit, an answer 1 where it is the number that was to be drawn. Rewards with weight 0 annotate: `draws`
    says which agent a rollout is of, `picture` how much of the picture fits, and `answer` whether the answer is right,
    for a drawing the mean over its answers. There are few prompts, so they come again and again, with other questions;
    a fifth of them is held out.
    """
    if not 2 <= colours <= len(COLOURS) or not 1 <= cells <= 9 or answers < 1:
        raise RecipeError(
            f"pictures of {cells} cells in {colours} colours with {answers} answers",
            where="task=draw-and-read",
            hint="cells=4 (at most 9) colours=3 (2 to 4) answers=1",
        )
    rng = np.random.default_rng(seed)
    kinds = [c for c in itertools.product(range(cells + 1), repeat=colours) if sum(c) == cells]
    train_kinds, held_out_kinds = divided(kinds, rng)

    def make(kinds: Sequence[tuple[int, ...]]) -> Row:
        counts = dict(zip(COLOURS, kinds[int(rng.integers(len(kinds)))], strict=False))
        drawn = rng.permutation(list("".join(name * count for name, count in counts.items())))
        return {"prompt": "".join(map(str, counts.values())) + ">", "prompts": {READER: "?"}, "counts": counts,
                "asked": COLOURS[int(rng.integers(colours))], "drawn": "".join(drawn)}  # fmt: skip

    return Task(
        "draw-and-read", [make(train_kinds) for _ in range(train)], [make(held_out_kinds) for _ in range(held_out)],
        script=_script,
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


def _script(row: Row, observations: Sequence[Any]) -> str:
    """A picture that fits; the number that was asked for."""
    return row["drawn"] if row["agent"] == PAINTER else str(row["counts"][row["asked"]])
