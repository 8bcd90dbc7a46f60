"""Where environments live: here, or each in a process that can be killed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from coterie.environments.base import Environment, Step, World
from coterie.errors import RewardError, RunError
from coterie.rewards.worker import Raised, Timeout, Worker


class Failed(Exception):
    """An environment raised, answered no Step, hung or died."""


class Host:
    """Holds one environment. Called as ("reset", row) or ("step", action); also sent to a process of its own."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self.make = make
        self.environment: Environment | None = None

    def __call__(self, verb: str, value: Any) -> Any:
        if verb == "reset":
            self.environment = self.make()
            answer = self.environment.reset(value)
        else:
            assert self.environment is not None
            answer = self.environment.step(value)
        if inspect.isawaitable(answer):
            answer = _awaited(answer)
        return answer


def _awaited(answer: Any) -> Any:
    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


class Hosts:
    """The environments of a batch of episodes. Calls of different episodes run side by side where they have processes.

    A call that fails fails its own episode alone; a process that hung is killed and its place taken by a new one.
    Processes serve the next episodes of the world too: a reset makes a new environment.
    """

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self._here = [Host(world.make) for _ in range(count)] if world.timeout is None else []
        self._workers = [_process(world) for _ in range(count)] if world.timeout else []

    def reset(self, rows: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """Key of the first state, or Failed, of each episode by number."""
        return self._all({i: ("reset", dict(row)) for i, row in rows.items()})

    def step(self, actions: Mapping[int, str]) -> dict[int, Step | Failed]:
        found = self._all({i: ("step", action) for i, action in actions.items()})
        return {i: _checked(answer) for i, answer in found.items()}

    def step_together(self, actions: Mapping[int, Mapping[str, str]]) -> dict[int, list[tuple[str, Step]] | Failed]:
        """The same where several agents act: what each of them did, and the answers to each, in their order."""
        found = self._all({i: ("step", dict(own)) for i, own in actions.items()})
        return {i: _all_checked(answer, self.world.agents) for i, answer in found.items()}

    def close(self) -> None:
        self.world.idle.extend(self._workers)
        self._workers = []

    def _all(self, calls: Mapping[int, tuple[str, Any]]) -> dict[int, Any]:
        if not self._workers or not calls:
            return {i: self._one(i, *call) for i, call in calls.items()}
        with ThreadPoolExecutor(len(calls)) as pool:
            return dict(zip(calls, pool.map(lambda i: self._one(i, *calls[i]), calls), strict=True))

    def _one(self, number: int, verb: str, value: Any) -> Any:
        try:
            if self._workers:
                assert self.world.timeout is not None
                return self._workers[number].call((verb, value), {}, self.world.timeout)
            return self._here[number](verb, value)
        except Timeout:
            return Failed(f"{verb} timed out after {self.world.timeout:g} s")
        except Raised as error:
            return Failed(f"{verb} raised {error}")
        except RewardError as error:  # it cannot be sent to a process at all
            raise RunError(f"the environment: {error.message}", hint=error.hint) from None
        except Exception as error:  # the environment's code runs here
            return Failed(f"{verb} raised {type(error).__name__}: {error}")


def _all_checked(answers: Any, agents: Sequence[str]) -> list[tuple[str, Step]] | Failed:
    if isinstance(answers, Failed):
        return answers
    if not isinstance(answers, Mapping):
        return Failed(f"step gave {type(answers).__name__}, not a Step for each agent")
    out: list[tuple[str, Step]] = []
    for name, given in answers.items():
        for answer in given if isinstance(given, list | tuple) else (given,):
            checked = _checked(answer) if name in agents else Failed(f"step answered {name!r}, which is no agent")
            if isinstance(checked, Failed):
                return checked
            out.append((name, checked))
    return out


def _process(world: World) -> Worker:
    return world.idle.pop() if world.idle else Worker(Host(world.make), "environment")


def _checked(answer: Any) -> Step | Failed:
    if isinstance(answer, Failed):
        return answer
    if not isinstance(answer, Step) or not isinstance(answer.observation, str | Mapping):
        return Failed(f"step gave {type(answer).__name__}, not a Step with an observation")
    try:
        reward = float(answer.reward)
    except (TypeError, ValueError):
        return Failed(f"step gave the reward {answer.reward!r}, which is no number")
    if reward != reward or reward in (float("inf"), float("-inf")):
        return Failed(f"step gave the reward {reward}, which is not finite")
    return answer
