"""Chores in a small household."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.household import HELP, OPEN, OPENABLE, THINGS, TOOLS, Household
from coterie.environments.text_world import opening
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate


@task(paper="arXiv:2010.03768")
def household(
    *, places: int = 6, turns: int = 20, chat: bool = False, train: int = 400, held_out: int = 100, seed: int = 0
) -> Task:
    """'Put a hot mug on table 1.': find it, heat it in the microwave, put it down; in the manner of ALFWorld.

    places: that hold things, beside sink, microwave and fridge. Things lie in closed drawers and cabinets too. chat:
    prompts are conversations.
    """
    if not 2 <= places <= 8 or turns < places + 6:
        raise RecipeError(f"household has 2 to 8 places and at least 6 turns more, got {places} and {turns}")

    def make(rng: np.random.Generator) -> Row:
        kinds = ["drawer", "cabinet", *OPEN[:2], *OPEN[3:]]
        names: list[str] = []
        for kind in rng.choice(kinds, places).tolist():
            names.append(f"{kind} {sum(n.startswith(kind) for n in names) + 1}")
        names += ["sink 1", "microwave 1", "fridge 1"]
        held: dict[str, list[str]] = {name: [] for name in names}
        for thing in rng.permutation(THINGS).tolist()[: places + 1]:
            held[names[int(rng.integers(places))]].append(thing)
        thing = str(rng.choice([t for own in held.values() for t in own]))
        need = str(rng.choice([*TOOLS, "none"]))
        goal = str(rng.choice([n for n in names[:places] if thing not in held[n]]))
        adjective = {"clean": "clean ", "heat": "hot ", "cool": "cold ", "none": ""}[need]
        text = f"You see {', '.join(names)}.\nTask: put the {adjective}{thing} on {goal}.\n{HELP}"
        return {"prompt": opening(text, chat=chat), "places": held, "thing": thing, "need": need, "goal": goal}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "household", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(Household, turns=turns),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """Go where the thing is, by the shortest way: the plan is the row's own."""
    thing, goal, need = row["thing"], row["goal"], row["need"]
    start = next(place for place, things in row["places"].items() if thing in things)
    plan = [f"go to {start}", f"open {start}", f"take {thing} from {start}"]
    if need != "none":
        plan += [f"go to {TOOLS[need]} 1", f"{need} {thing} with {TOOLS[need]} 1"]
    plan += [f"go to {goal}", f"open {goal}", f"put {thing} on {goal}"]
    plan = [p for p in plan if not p.startswith("open") or re.match(rf"open ({'|'.join(OPENABLE)})", p)]
    return plan[len(observations)]
