"""Sort digits: the smallest task with a curve."""

from __future__ import annotations

import numpy as np

from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Row, Task, generate


@task()
def sort(*, digits: int = 5, train: int = 4096, held_out: int = 256, dense: bool = False, seed: int = 0) -> Task:
    """Write a string of digits in ascending order: '53142>' -> '12345'.

    dense: reward the share of positions that are right instead of all or nothing.
    """

    def make(rng: np.random.Generator) -> Row:
        text = "".join(map(str, rng.integers(0, 10, digits)))
        return {"prompt": f"{text}>", "answer": "".join(sorted(text))}

    rows, held = generate(make, train, held_out, seed)
    rewards = [WeightedReward(_share if dense else _verdict, "positions" if dense else "correct", per_sample=True)]
    return Task(
        "sort", rows, held, verify=_verdict, rewards=rewards, verdict=None if dense else "correct",
        reference=lambda row: row["answer"], corrupt=_swap, vocabulary="0123456789>",
    )  # fmt: skip


def _verdict(completion: str, row: Row) -> bool:
    return completion.strip() == row["answer"]


def _share(completion: str, row: Row) -> float:
    text, answer = completion.strip(), row["answer"]
    return sum(a == b for a, b in zip(text, answer, strict=False)) / max(len(text), len(answer))


def _swap(row: Row, seed: int) -> str:
    answer = row["answer"]
    place = seed % len(answer)
    return answer[:place] + str((int(answer[place]) + 1) % 10) + answer[place + 1 :]
