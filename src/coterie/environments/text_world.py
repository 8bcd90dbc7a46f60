"""What worlds of short text commands share: the row's way of speaking, and how observations end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from coterie.environments.base import Step


class TextWorld:
    """One command a turn. Subclasses write `begin(row)` and `act(command)`, which gives what is seen, a reward, whether
    that was the end and whether it was a success.

    The command is the action's last line that is not empty, in lower case, without "> " before and a full stop behind.
    `info` has `valid`, False where the command could not be understood. In a conversation what is seen is the user's
    message; else it ends with "> ", after which a command is due.
    """

    def reset(self, row: Mapping[str, Any]) -> str | None:
        self._spoken = not isinstance(row["prompt"], str)
        return self.begin(row)

    def begin(self, row: Mapping[str, Any]) -> str | None:
        """Begin; the key of the first state, where the prompt is not that."""
        raise NotImplementedError

    def act(self, command: str) -> Outcome:
        raise NotImplementedError

    def step(self, action: str) -> Step:
        outcome = self.act(command_of(action))
        info: dict[str, Any] = {"success": outcome.success, "valid": outcome.valid}
        if outcome.state is not None:
            info["state"] = outcome.state
        seen = outcome.seen if self._spoken else f"\n{outcome.seen}\n> "
        return Step(seen, outcome.reward, outcome.done, info)


@dataclass(frozen=True)
class Outcome:
    """What a command led to. state: the state's key, where that is more than what is seen."""

    seen: str
    reward: float = 0.0
    done: bool = False
    _: KW_ONLY
    success: bool = False
    valid: bool = True
    state: str | None = None


def unknown(what: str) -> Outcome:
    """A command that could not be understood, and what could be."""
    return Outcome(what, valid=False)


def command_of(action: str) -> str:
    """The command in an action (see `TextWorld`)."""
    lines = [line.strip() for line in action.splitlines() if line.strip()]
    return " ".join(lines[-1].removeprefix(">").rstrip(".").lower().split()) if lines else ""


def opening(text: str, *, chat: bool) -> str | list[dict[str, str]]:
    """A prompt that says how things stand, and asks for a command."""
    return [{"role": "user", "content": text}] if chat else f"{text}\n> "
