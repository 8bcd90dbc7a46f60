"""Gymnasium environments in text: what is seen is described, and actions are named (extra `agents`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown
from coterie.errors import RecipeError

_HERE = re.compile(r"\x1b\[\d+m(.*?)\x1b\[0m")
_CODE = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Spoken:
    """How an environment is put into words.

    actions: names of a discrete environment's actions, in order. shown(env, observation): what is seen, by default what
    the environment renders as text, else the observation as it is. varied(seed): arguments of `gymnasium.make` that
    depend on the row's seed, for environments that are always the same. script(env): the next action, where one can be
    told.
    """

    actions: Sequence[str] = ()
    shown: Callable[[Any, Any], str] | None = None
    varied: Callable[[int], Mapping[str, Any]] | None = None
    script: Callable[[Any], str] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def make(id: str, spoken: Spoken, row: Mapping[str, Any]) -> tuple[Any, str]:
    """An environment at the beginning of a row's episode, and what is seen."""
    try:
        import gymnasium
    except ImportError as error:
        raise RecipeError("Gymnasium worlds need the package gymnasium", hint="pip install coterie[agents]") from error
    varied = {} if spoken.varied is None else spoken.varied(row["seed"])
    kwargs = {**spoken.kwargs, **varied, **row.get("kwargs", {})}
    try:
        env = gymnasium.make(id, **kwargs)
        if "ansi" in env.metadata.get("render_modes", ()):
            env.close()
            env = gymnasium.make(id, render_mode="ansi", **kwargs)
    except gymnasium.error.Error as error:
        raise RecipeError(f"Gymnasium cannot make '{id}': {error}", hint="check its id and its arguments") from error
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise RecipeError(
            f"'{id}' takes actions of {env.action_space}, which cannot be named",
            hint="an environment with a Discrete action space",
        )
    observation, _ = env.reset(seed=row["seed"])
    return env, described(env, observation, spoken)


def described(env: Any, observation: Any, spoken: Spoken) -> str:
    """What is seen, as text."""
    if spoken.shown is not None:
        return spoken.shown(env, observation)
    if env.render_mode == "ansi":
        text = _HERE.sub(r"[\1]", env.render())
        return "\n".join(line.rstrip() for line in _CODE.sub("", text).strip("\n").splitlines())
    return str(observation.tolist() if hasattr(observation, "tolist") else observation)


class GymnasiumText(TextWorld):
    """Rows have `seed`, and `kwargs` where the environment is to be made with more. A command is the name or the number
    of an action; the reward is the environment's. Success is a sum of rewards above `above`. An episode that the
    environment truncates is over."""

    def __init__(self, id: str, spoken: Spoken | None = None, *, above: float = 0.0) -> None:
        self.id, self.spoken, self.above = id, spoken or known(id), above
        self.env: Any = None

    def begin(self, row: Mapping[str, Any]) -> str:
        if self.env is not None:
            self.env.close()
        self.env, seen = make(self.id, self.spoken, row)
        self.total = 0.0
        return seen

    def act(self, command: str) -> Outcome:
        first, count = int(self.env.action_space.start), int(self.env.action_space.n)
        names = list(self.spoken.actions) or [str(first + k) for k in range(count)]
        if command in names:
            action = first + names.index(command)
        elif command.isascii() and command.isdigit() and len(command) < 9 and first <= int(command) < first + count:
            action = int(command)
        else:
            return unknown(f"That is no action; there are {', '.join(names)}.")
        observation, reward, ended, cut, _ = self.env.step(action)
        self.total += float(reward)
        seen = described(self.env, observation, self.spoken)
        done = bool(ended or cut)
        return Outcome(seen, float(reward), done, success=done and self.total > self.above)


def known(id: str) -> Spoken:
    """How an environment is put into words, by its id; by numbers where it is not among those we know."""
    return _KNOWN.get(id, Spoken())


def _map(seed: int) -> Mapping[str, Any]:
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    return {"desc": generate_random_map(size=4, p=0.8, seed=seed)}


def _lake_way(env: Any) -> str:
    """A shortest way over the ice, by the table of what leads where."""
    lake = env.unwrapped
    ahead: list[tuple[int, str]] = [(int(lake.s), "")]
    seen = {int(lake.s)}
    for state, first in ahead:
        for action, name in enumerate(_KNOWN["FrozenLake-v1"].actions):
            _, to, reward, ended = lake.P[state][action][0]
            if reward > 0:
                return first or name
            if to not in seen and not ended:
                seen.add(to)
                ahead.append((to, first or name))
    raise AssertionError("every lake has a way")


def _cards(env: Any, observation: Any) -> str:
    ours, theirs, ace = observation
    return f"You have {ours}{' with an ace that counts 11' if ace else ''}, the dealer shows {theirs}."


_KNOWN = {
    "FrozenLake-v1": Spoken(("left", "down", "right", "up"), None, _map, _lake_way, {"is_slippery": False}),
    "Blackjack-v1": Spoken(("stick", "hit"), _cards),
    "Taxi-v3": Spoken(("south", "north", "east", "west", "pick up", "drop off")),
    "Taxi-v4": Spoken(("south", "north", "east", "west", "pick up", "drop off")),
    "CliffWalking-v1": Spoken(("up", "right", "down", "left")),
}
