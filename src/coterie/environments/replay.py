"""An expert's episode as a world: what the expert saw is what the policy sees, as long as it acts alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Episode, Step

EXPERT = "expert"
"""Column of a row that holds the expert's Episode."""


class Replay:
    """Each action is compared with the expert's: `exact` if they are equal, `kind` if their first words are, else 0.

    After an action that is not the expert's the episode goes on from the expert's, which the policy is told before the
    observation: a patch. There are `patches` of them in an episode, any number if negative; without one it ends. The
    verdict is that every action was the expert's.
    """

    def __init__(self, patches: int, exact: float, kind: float) -> None:
        self.patches, self.exact, self.kind = patches, exact, kind

    def reset(self, row: Mapping[str, Any]) -> str | None:
        self.expert: Episode = row[EXPERT]
        self.turn = self.patched = 0
        return self.expert.states[0] if self.expert.states else None

    def step(self, action: str) -> Step:
        want, observation = self.expert.actions[self.turn], self.expert.observations[self.turn]
        info = {**self.expert.infos[self.turn], "patched": False}
        self.turn += 1
        last = self.turn == self.expert.turns
        if action == want:
            info["success"] = last and self.patched == 0
            return Step(observation, self.exact, last, info)
        words, others = action.split(), want.split()
        near = bool(words) and bool(others) and words[0] == others[0]
        goes_on = not last and (self.patches < 0 or self.patched < self.patches)
        self.patched += 1
        info |= {"success": False, "patched": goes_on}
        return Step(_told(want, observation) if goes_on else observation, self.kind if near else 0.0, not goes_on, info)


def _told(action: str, observation: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """The expert's action, and what it led to."""
    if isinstance(observation, str):
        return action + observation
    return {**observation, "content": f"{action}\n{observation.get('content', '')}"}
