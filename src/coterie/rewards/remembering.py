"""Reward functions with memory: made once a run, taught once a step, and in its checkpoints.

Such a function is an object with `state_dict` and `load_state_dict`, or a method of one. Where it has `learn` as well,
that is called once after each step with what was rolled out in it, in the signature of reward functions. Grading may
happen several times a step, or once more after an error, so what is learned belongs in `learn`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from coterie.errors import RecipeError, RewardError, did_you_mean
from coterie.rewards.functions import WeightedReward

STATE = ("state_dict", "load_state_dict")


class Remembering(Protocol):
    """Something with memory, as the checkpoint sees it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def memory_of(fn: Any, name: str) -> Any | None:
    """The object that holds the state of a reward function: itself, or the one that it is a method of. None: no state.

    Raises RecipeError for half of what it takes.
    """
    owner = getattr(fn, "__self__", fn)
    has = [part for part in STATE if callable(getattr(owner, part, None))]
    if len(has) == 2:
        return owner
    if has or callable(getattr(owner, "learn", None)):
        raise RecipeError(
            f"reward function '{name}' has {has[0] if has else 'learn'} and no "
            + " and no ".join(part for part in STATE if part not in has),
            hint="what it learns must survive a stop: give it state_dict() and load_state_dict(state)",
        )
    return None


def make(fn: Any, settings: Mapping[str, Any], name: str) -> Any:
    """An object of the class `fn` with these settings, for one run. Raises RecipeError where they are not its own."""
    known = inspect.signature(fn).parameters
    for setting in settings:
        if setting not in known:
            raise RecipeError(
                f"reward function '{name}' has no setting '{setting}'",
                hint=did_you_mean(setting, known) if known else "it has no settings",
            )
    for setting, parameter in known.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise RecipeError(
                f"reward function '{name}' needs the setting '{setting}'",
                hint=f"{{fn: {name}, settings: {{{setting}: …}}}}",
            )
    made = fn(**settings)
    if not callable(made):
        raise RecipeError(
            f"reward function '{name}' is a class whose objects cannot be called", hint="give it __call__"
        )
    return made


def check_alone(functions: Sequence[WeightedReward], processes: int, engine: str | None) -> None:
    """Raise RecipeError where a function with memory would grade in processes that do not share it."""
    for function in functions:
        if memory_of(function.fn, function.name) is None:
            continue
        says = f"reward function '{function.name}' has memory"
        if function.timeout is not None:
            raise RecipeError(
                f"{says}, and with a timeout it would grade in a process of its own, from which nothing comes back",
                hint=f"leave its timeout out: {{fn: {function.name}, timeout: null}}",
            )
        if processes > 1 or engine == "ray":
            raise RecipeError(
                f"{says}, and each of several workers would remember its own share of the rollouts",
                hint="scale.train_workers=1 and no scale.engine",
            )


def check_state(state: Any, name: str, place: str = "") -> None:
    """Raise RewardError for a state that a checkpoint could not give back."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            check_state(value, name, f"{place}[{key!r}]")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            check_state(value, name, f"{place}[{i}]")
    elif not isinstance(state, str | int | float | bool | Tensor | None):
        raise RewardError(
            f"state_dict(){place} of reward function '{name}' is of type {type(state).__name__}",
            hint="a state is made of tensors, numbers, text, lists and dicts",
        )
