"""Code to mend, with tests: the smallest world with grades of success and steps that are easier to earn."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World
from coterie.environments.patch import EDIT, END, SUBMIT, TEST, Patch, outcome, steps
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

_DOES = {"+": lambda x, n: x + n, "-": lambda x, n: x - n, "*": lambda x, n: x * n}


@task()
def patch(*, turns: int = 6, train: int = 500, held_out: int = 50, seed: int = 0) -> Task:
    """Mend one line of code: 'x+3;2:10,5:25>' -> '=x*5', '?' runs the tests, answered '++>', '!' submits.

    The code is x, an operation and a digit, and one of these is wrong. turns: commands of an episode. Rewards are the
    outcome (nothing submitted -1, nothing changed 0, changed 1, tests passed 2) and the steps, a quarter for each
    command that can be understood: join g-ra, and they count only behind code that was changed and submitted. Needs a
    sandbox (`coterie doctor` says whether there is one).
    """
    if turns < 2:
        raise RecipeError(f"patch needs a turn to edit and one to submit, got {turns=}", hint="turns=6")

    def make(rng: np.random.Generator) -> Row:
        operations = rng.permutation(list(_DOES)).tolist()
        right, wrong = rng.choice(np.arange(2, 10), 2, replace=False).tolist()
        kept = bool(rng.random() < 0.5)
        faulty = f"x{operations[0]}{wrong}" if kept else f"x{operations[1]}{right}"
        tests = [(x, _DOES[operations[0]](x, right)) for x in rng.choice(np.arange(3, 10), 2, replace=False).tolist()]
        asked = f"{faulty};{','.join(f'{x}:{value}' for x, value in tests)}{END}"
        return {"prompt": asked, "code": faulty, "tests": tests, "answer": f"x{operations[0]}{right}"}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "patch", rows, held, script=_script,
        rewards=[WeightedReward(outcome, "outcome"), WeightedReward(steps, "steps")],
        world=World(Patch, turns=turns, turn_tokens=5),
        vocabulary=string.digits + "x;:,e" + "".join(_DOES) + EDIT + TEST + SUBMIT + END,
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    return [EDIT + row["answer"], TEST, SUBMIT][len(observations)]
