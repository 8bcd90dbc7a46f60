"""Who listens to whom: join voters of different skill, so that the last one answers well."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task()
def topology(*, voters: int = 4, train: int = 300, held_out: int = 60, seed: int = 0) -> Task:
    """A bit for each pair of voters, the earlier one first: does the later one listen? '9557>' -> '011001'

    voters: 2 to 5. A digit is a voter's skill, the tenths of questions it would get right alone. In order each votes
    with the majority of its own guess and of those it listens to, and where that is a tie as it guessed. The reward is
    how often the last one is right, worked out exactly; nothing where there is not a bit for each pair. The verdict is
    that no graph does better.
    """
    if not 2 <= voters <= 5:
        raise RecipeError(f"topology has 2 to 5 voters, got {voters}", hint="voters=4")

    def make(rng: np.random.Generator) -> Row:
        skills = "".join(str(s) for s in rng.integers(5, 10, voters))
        return {"prompt": f"{skills}>", "skills": skills}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "topology", rows, held, verify=_is_best, rewards=[WeightedReward(_rewards, "right")], reference=_best,
        corrupt=lambda row, seed: _best(row)[:-1], vocabulary="0123456789>",
    )  # fmt: skip


def _rewards(completions: list[str], skills: list[str], **_: Any) -> list[float]:
    return [right(s, text) for text, s in zip(completions, skills, strict=True)]


@functools.lru_cache(2**16)
def right(skills: str, edges: str) -> float:
    """How often the last voter is right where `edges` says who listens to whom."""
    pairs = list(itertools.combinations(range(len(skills)), 2))
    if len(edges) != len(pairs) or set(edges) - {"0", "1"}:
        return 0.0
    heard = {(i, j) for (i, j), bit in zip(pairs, edges, strict=True) if bit == "1"}
    total = 0.0
    for guesses in itertools.product((-1, 1), repeat=len(skills)):
        votes: list[int] = []
        for j, guess in enumerate(guesses):
            sum_of_votes = guess + sum(votes[i] for i in range(j) if (i, j) in heard)
            votes.append(guess if sum_of_votes == 0 else int(np.sign(sum_of_votes)))
        chances = [int(s) / 10 if g == 1 else 1 - int(s) / 10 for s, g in zip(skills, guesses, strict=True)]
        total += float(np.prod(chances)) * (votes[-1] == 1)
    return total


@functools.lru_cache(1024)
def _best_of(skills: str) -> str:
    """The graph with which the last voter is right most often; of equal ones that with the fewest edges."""
    count = len(skills) * (len(skills) - 1) // 2
    graphs = ["".join(bits) for bits in itertools.product("01", repeat=count)]
    return max(graphs, key=lambda g: (round(right(skills, g), 9), -g.count("1"), g))


def _best(row: Row) -> str:
    return _best_of(row["skills"])


def _is_best(completion: str, row: Row) -> bool:
    return right(row["skills"], completion) >= right(row["skills"], _best(row)) - 1e-9
