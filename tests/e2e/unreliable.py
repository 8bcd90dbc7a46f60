"""A world whose environments hang, crash, answer garbage or die, the same world where such episodes only end, and the
same where nothing happens to them."""

from __future__ import annotations

import functools
from typing import Any, Literal

from coterie.environments import Episode, World
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from tests.e2e.unreliable_world import KINDS, Walk


def earned(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    lost = [e.failed is not None or any("void" in info for info in e.infos) for e in episode]
    return [None if gone else e.total for e, gone in zip(episode, lost, strict=True)]


def doomed(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """Which of the kinds would have befallen it, 0 for none."""
    named = [[info["doomed"] for info in e.infos if info["doomed"]] for e in episode]
    return [float(KINDS.index(kinds[0]) + 1) if kinds else 0.0 for kinds in named]


@task()
def unreliable(*, fate: Literal["suffered", "spared", "told"] = "suffered") -> Task:
    """Goals 0 and 4, and one row on which every environment fails. Nothing is held out."""
    rows = [{"prompt": f"{first}{goal}>", "goal": goal} for first in "12389" for goal in (0, 4)]
    timeout = 1.5 if fate == "suffered" else None
    world = World(functools.partial(Walk, fate), turns=3, turn_tokens=2, timeout=timeout, most_failed=1.0)
    graders = [WeightedReward(earned, "return")] + [WeightedReward(doomed, "doomed", 0.0)] * (fate == "told")
    return Task("unreliable", rows, [], rewards=graders, vocabulary="0123456789>-ab", world=world)
