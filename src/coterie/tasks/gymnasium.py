"""Any Gymnasium environment with discrete actions, in text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from coterie.adapters.gymnasium import GymnasiumText, known, make
from coterie.environments.base import World, episode_return
from coterie.environments.text_world import opening
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.streams import stream
from coterie.tasks.base import Task
from coterie.tasks.split import Row


@task()
def gymnasium(
    *,
    id: str = "FrozenLake-v1",
    arguments: dict[str, Any] | None = None,
    turns: int = 20,
    above: float = 0.0,
    chat: bool = False,
    train: int = 200,
    held_out: int = 50,
    seed: int = 0,
) -> Task:
    """Play Gymnasium's environments by naming actions (extra `agents`): 'FrozenLake-v1', 'Blackjack-v1', 'Taxi-v3' …

    id and arguments: of `gymnasium.make`. Discrete actions only; those of toy-text environments have names, others
    numbers. above: a sum of rewards above this is success. chat: prompts are conversations. Rows are seeds: those held
    out are others, and each FrozenLake has a map of its own. Only FrozenLake has a script to warm-start on.
    """
    spoken = known(id)
    rows: list[Row] = []
    for number in range(train + held_out):
        row: Row = {"seed": stream(seed, "gymnasium", number) % 2**31, "kwargs": dict(arguments or {})}
        env, seen = make(id, spoken, row)
        named = ", ".join(spoken.actions) or f"numbers from {env.action_space.start}, {env.action_space.n} of them"
        rows.append({"prompt": opening(f"{seen}\nActions: {named}.", chat=chat), **row})
        env.close()

    def script(row: Row, observations: Sequence[Any]) -> str:
        assert spoken.script is not None
        env, _ = make(id, spoken, row)
        for _ in observations:
            env.step(list(spoken.actions).index(spoken.script(env)))
        return spoken.script(env)

    return Task(
        "gymnasium", rows[held_out:], rows[:held_out], rewards=[WeightedReward(episode_return, "return")],
        script=script if spoken.script is not None else None,
        world=World(functools.partial(GymnasiumText, id, above=above), turns=turns),
    )  # fmt: skip
