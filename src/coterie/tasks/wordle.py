"""Wordle on a list of common words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.text_world import opening
from coterie.environments.wordle import WORDS, Wordle, best_guess
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row

RULES = (
    "Find a word of five letters in six guesses. Each guess is answered letter by letter: g right, y elsewhere in the "
    "word, b not in it. Guess one word a turn."
)


@task(paper="arXiv:2311.18232")
def wordle(*, turns: int = 8, chat: bool = False, held_out: int = 30, seed: int = 0) -> Task:
    """Find a word in six guesses: 'crane' -> 'crane ybbgb'. Held out are words to find; all may be guessed.

    turns: guesses that count and those that are no words together. chat: prompts are conversations.
    """
    if not 1 <= held_out < len(WORDS) or turns < 6:
        raise RecipeError(
            f"wordle holds out 1 to {len(WORDS) - 1} words and has 6 turns or more, got {held_out}, {turns}"
        )
    order = np.random.default_rng(seed).permutation(len(WORDS)).tolist()
    rows: list[Row] = [{"prompt": opening(RULES, chat=chat), "target": WORDS[i]} for i in order]
    return Task(
        "wordle", rows[held_out:], rows[:held_out], rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(Wordle, turns=turns),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    return best_guess([tuple(re.findall(r"(\w{5}) ([gyb]{5})", str(seen))[0]) for seen in observations])
