"""Twenty questions about everyday things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.text_world import opening
from coterie.environments.twenty_questions import (
    PROPERTIES,
    THINGS,
    TwentyQuestions,
    best_question,
    still_possible,
)
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task(paper="arXiv:2311.18232")
def twenty_questions(
    *, things: int = 10, turns: int = 20, chat: bool = False, train: int = 400, held_out: int = 100, seed: int = 0
) -> Task:
    """Which of some things is thought of? 'is it an animal' -> 'yes'; 'is it a dog' ends it where it is one.

    things: to choose from, named in the prompt. turns: the most questions. chat: prompts are conversations.
    """
    if not 2 <= things <= len(THINGS) or turns < things:
        raise RecipeError(f"things are 2 to {len(THINGS)}, and turns no fewer, got {things} and {turns}")

    def make(rng: np.random.Generator) -> Row:
        listed = sorted(rng.choice(THINGS, things, replace=False).tolist())
        text = (
            f"I think of one of: {', '.join(listed)}.\nAsk 'is it PROPERTY', or guess 'is it a THING'. Properties: "
            f"{', '.join(PROPERTIES)}."
        )
        return {"prompt": opening(text, chat=chat), "things": listed, "secret": str(rng.choice(listed))}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "twenty-questions", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(TwentyQuestions, turns=turns),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """Halve what is left; what was asked before is found out by playing it again."""
    said: list[tuple[str, str]] = []
    for seen in observations:
        said.append((best_question(still_possible(row["things"], said)), "yes" if "yes" in str(seen) else "no"))
    return best_question(still_possible(row["things"], said))
