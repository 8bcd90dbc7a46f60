"""Describe a picture in a few characters so that it can be drawn again: understanding and generation in one loop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

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
T = TypeVar("T")


@task()
def redraw(
    *, cells: int = 4, characters: int = 2, drawings: int = 4, train: int = 256, held_out: int = 64, seed: int = 0
) -> Task:
    """Two agents: describe sees '0110>' and says 'cb', draw sees '<cb>' and says '0110'.

    A picture has `cells` cells, 0 or 1. A description of more than `characters` is not passed on, so that they must
    come to mean something: there are eight letters, and 0 and 1. Each description is drawn `drawings` times. The reward
    is the share of cells that come back, for a description the mean over its drawings; the reward `draws` with weight 0
    says which agent a rollout is of. There are few pictures, so they come again and again; a fifth of them is held out.
    The script, for a warm start, calls the cells by a letter each one, two or three; where a letter would have to stand
    for more, there is none.
    """
    if not 1 <= characters <= cells <= 12 or drawings < 1:
        raise RecipeError(
            f"a description of {characters} of {cells} cells that is drawn {drawings} times",
            where="task=redraw",
            hint="cells=4 (at most 12) characters=2 drawings=4",
        )
    rng = np.random.default_rng(seed)
    pictures = ["".join(drawn) for drawn in itertools.product(INK, repeat=cells)]
    train_pictures, held_out_pictures = divided(pictures, rng)
    each = -(-cells // characters)

    def make(pictures: Sequence[str]) -> Row:
        picture = pictures[int(rng.integers(len(pictures)))]
        parts = [picture[i : i + each] for i in range(0, cells, each)]
        said = "".join(WORDS[int(part, 2)] for part in parts) if each <= 3 else ""
        return {"prompt": f"{picture}>", "prompts": {PAINTER: "<"}, "picture": picture, "said": said}

    return Task(
        "redraw", [make(train_pictures) for _ in range(train)], [make(held_out_pictures) for _ in range(held_out)],
        script=_script if each <= 3 else None,
        rewards=[WeightedReward(episode_return, "alike"), WeightedReward(draws, "draws", weight=0.0)],
        world=World(partial(Redraw, characters, drawings), turns=1 + drawings, turn_tokens=cells,
                    agents=(SPEAKER, PAINTER)),
        vocabulary=INK + WORDS + "<>",
    )  # fmt: skip


def draws(completions: list[Any], agent: list[str], episode: list[Episode], **columns: Any) -> list[float | None]:
    """1 for a rollout of the agent that draws, 0 for one of the other."""
    return [None if e.failed is not None else float(a == PAINTER) for a, e in zip(agent, episode, strict=True)]


def divided(kinds: Sequence[T], rng: np.random.Generator) -> tuple[list[T], list[T]]:
    """What is trained on, and what is held out: a fifth, but one at the least."""
    shuffled = [kinds[i] for i in rng.permutation(len(kinds))]
    cut = max(len(kinds) // 5, 1)
    return shuffled[cut:], shuffled[:cut]


def _script(row: Row, observations: Sequence[Any]) -> str:
    """The picture in letters; the picture."""
    return row["picture"] if row["agent"] == PAINTER else row["said"]
