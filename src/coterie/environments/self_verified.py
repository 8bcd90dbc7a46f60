"""Solver and verifier in one: after each step the policy judges it, and is paid for what it is sure of
(Agent0-VL, arXiv:2511.19900)."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.environments.base import RAN, Episode, Step

CUE, ON, REPAIR = "v", ">", "r>"
_VERDICT = re.compile(r"\s*([+-])(\d(?:\.\d+)?),(\d(?:\.\d+)?)\s*")


def verdict(said: str) -> tuple[float, float]:
    """Score in [-1, 1] and confidence in [0, 1] of '+0.8,0.9'; 0 and 0 where it cannot be read or is out of range."""
    found = _VERDICT.fullmatch(said)
    score, sure = (float(found[1] + found[2]), float(found[3])) if found else (0.0, 0.0)
    return (score, sure) if abs(score) <= 1 and sure <= 1 else (0.0, 0.0)


@dataclass
class SelfVerified:
    """Another environment, each step of which has two turns: the solver's, which goes to that environment, and the
    verifier's, who has read what came of it and writes a verdict such as '+1,0.9'.

    Step t (from 0) is worth gamma^t (tool * used + score * sure), `used` where its tool calls ran (info "ran"). A step
    of which the verifier is not sure, sure < below, is to be repaired, and costs gamma^t * gate * repair, gate =
    sigmoid(steepness * (below - sure)). All this, and what the environment pays, comes with the verdict. Behind it
    stands `on`, or `mend` where the next step is a repair. A world of this has twice the turns. Infos have outcome
    (what the environment paid), process (what the step was worth) and repair.
    """

    make: Callable[[], Any]
    tool: float = 0.3
    gamma: float = 0.99
    below: float = 0.7
    steepness: float = 5.0
    repair: float = 0.05
    cue: str = CUE
    on: str = ON
    mend: str = REPAIR
    _inner: Any = field(default=None, init=False)

    async def reset(self, row: Mapping[str, Any]) -> Any:
        self._inner = self._inner or self.make()
        self._taken: Step | None = None
        self._steps = 0
        begun = self._inner.reset(row)
        return await begun if inspect.isawaitable(begun) else begun

    async def step(self, action: str) -> Step:
        if self._taken is None:
            taken = self._inner.step(action)
            self._taken = await taken if inspect.isawaitable(taken) else taken
            return Step(self._asked(self._taken.observation), info={"success": False})
        taken, self._taken = self._taken, None
        score, sure = verdict(action)
        unsure = sure < self.below
        cost = self.repair / (1 + math.exp(-self.steepness * (self.below - sure))) if unsure else 0.0
        worth = self.gamma**self._steps * (self.tool * bool(taken.info.get(RAN)) + score * sure - cost)
        self._steps += 1
        own = {"outcome": taken.reward, "process": worth, "repair": float(unsure)}
        said = self.mend if unsure else self.on
        return Step(said, taken.reward + worth, taken.done, {"success": False, **taken.info, **own})

    def _asked(self, observation: Any) -> Any:
        """What the environment said, and that a verdict is due."""
        if isinstance(observation, str):
            return observation + self.cue
        return {**observation, "content": f"{observation['content']}{self.cue}"}


def outcome(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """What the environment itself paid."""
    return _sums(episode, "outcome")


def steps(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """What the steps were worth by their verdicts, with tools and repairs."""
    return _sums(episode, "process")


def repairs(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """Number of steps that the verifier was not sure of."""
    return _sums(episode, "repair")


def _sums(episodes: list[Episode], key: str) -> list[float | None]:
    return [None if e.failed is not None else math.fsum(i.get(key, 0.0) for i in e.infos) for e in episodes]
