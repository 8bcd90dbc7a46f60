"""What the answers of a world of several agents mean for their lines (see `SharedEnvironment.step`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from coterie.environments.base import Episode, Step


class OfAgent(Protocol):
    """A line of an agent in an episode."""

    agent: str
    episode: Episode


L = TypeVar("L", bound=OfAgent)


def hear(lines: Sequence[L], answers: Sequence[tuple[str, Step]]) -> tuple[list[tuple[L, Step]], dict[str, Any]]:
    """Let the lines of an episode, in the order in which they began, hear what the world said: those that were under
    way, each with its step, and what begins new lines, by agent.
    """
    heard: list[tuple[L, Step]] = []
    calls: dict[str, Any] = {}
    for name, step in answers:
        own = [line for line in lines if line.agent == name]
        if own and not own[-1].episode.done:
            own[-1].episode.hear(step)
            heard.append((own[-1], step))
        elif step.done:
            for line in own:
                line.episode.hear_late(step)
        else:
            calls[name] = step.observation
    return heard, calls
