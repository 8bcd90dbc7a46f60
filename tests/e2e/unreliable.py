"""A world whose environments hang, crash, answer garbage or die, and the same world where such episodes only end."""

from __future__ import annotations

import functools
from typing import Any

from coterie.environments import Episode, World
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from tests.e2e.unreliable_world import Walk


def earned(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    lost = [e.failed is not None or any("void" in info for info in e.infos) for e in episode]
    return [None if gone else e.total for e, gone in zip(episode, lost, strict=True)]


@task()
def unreliable(*, faulty: bool = True) -> Task:
    """Goals 0 and 4, and one row on which every environment fails. Nothing is held out."""
    rows = [{"prompt": f"{first}{goal}>", "goal": goal} for first in "12389" for goal in (0, 4)]
    world = World(
        functools.partial(Walk, faulty), turns=3, turn_tokens=2, timeout=1.5 if faulty else None, most_failed=1.0
    )
    return Task("unreliable", rows, [], rewards=[WeightedReward(earned, "return")], vocabulary="0123456789>-ab",
                world=world)  # fmt: skip
