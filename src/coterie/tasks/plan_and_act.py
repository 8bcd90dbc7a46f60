"""A planner that tells an executor what to do: the smallest world in which one of two may be frozen."""

from __future__ import annotations

from functools import partial

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.plan_and_act import END, EXECUTOR, KINDS, PLANNER, PlanAndAct
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task


@task()
def plan_and_act(*, places: int = 4, train: int = 256, held_out: int = 32, seed: int = 0) -> Task:
    """The planner sees an action, 'c3>', and writes at most two letters, 'c3'; the executor reads only these, 'xc3>',
    and acts: 'c3'.

    places: digits that an action can have, with c or t before it. Both get 1 for the right letter, and up to 1 more the
    nearer the digit: the planner by what it saw, the executor by what it was told. There are only 2 * places targets:
    those held out are drawn from the same.
    """
    if not 2 <= places <= 10:
        raise RecipeError(f"plan-and-act has 2 to 10 places, got {places}", hint="places=4")
    drawn = np.random.default_rng(seed).integers(0, len(KINDS) * places, train + held_out).tolist()
    targets = [f"{KINDS[n // places]}{n % places}" for n in drawn]
    rows = [{"prompt": t + END, "target": t, "prompts": {PLANNER: t + END, EXECUTOR: "x"}} for t in targets]
    return Task(
        "plan-and-act", rows[:train], rows[train:], rewards=[WeightedReward(episode_return, "return")],
        world=World(partial(PlanAndAct, places), turns=2, turn_tokens=2, agents=(PLANNER, EXECUTOR)),
        vocabulary=KINDS + "0123456789"[:places] + "x" + END,
    )  # fmt: skip
