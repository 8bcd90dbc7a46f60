"""A main agent who must ask others for what it needs to know: each of them reads a card that nobody else sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

MAIN = "main"
SUBS = ("left", "right")
END = ">"


class Delegation:
    """Rows have `cards` (of each sub-agent, what stands beside its letters), `wanted` (letters) and `answer`.

    The main agent asks by a letter: the sub-agent whose card has it is called with that letter, and what it says is the
    observation. Anything else is the main agent's answer and ends the episode, with 1 if it is right. Each letter that
    is wanted earns `ask` when it is first asked for. A sub-agent earns 1 for saying what its card says and, in the end,
    `share` of what the answer earned.
    """

    def __init__(self, ask: float, share: float) -> None:
        self.ask, self.share = ask, share

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.row, self.asked = row, ""
        return {MAIN: ""}

    def step(self, actions: Mapping[str, str]) -> dict[str, Step]:
        cards, wanted = self.row["cards"], self.row["wanted"]
        for name in SUBS:
            if name in actions:
                right = actions[name] == cards[name][self.asked[-1]]
                useful = self.asked[-1] in wanted and self.asked[-1] not in self.asked[:-1]
                return {
                    name: Step("", float(right), True, {"success": right}),
                    MAIN: Step(actions[name] + END, self.ask * useful, info={"success": False}),
                }
        said = actions[MAIN]
        for name in SUBS:
            if said in cards[name]:
                self.asked += said
                return {name: Step(said + END)}
        right = said == self.row["answer"]
        late = {name: Step("", self.share * right, True) for name in SUBS}
        return {MAIN: Step("", float(right), True, {"success": right}), **late}
