"""Trust-and-Split: coins that are worth more to one of two, who can only find out by telling (arXiv:2511.19405)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

COINS = 10
HANDS = ("rock", "paper", "scissors")
_BEATS = {"rock": "scissors", "paper": "rock", "scissors": "paper"}
HELP = "commands: say TEXT (once a round), keep NUMBER"


def values(ours: str, theirs: str) -> tuple[int, int]:
    """What a coin is worth to both: 10 to the winner of rock, paper, scissors, 1 to the other."""
    return (10, 1) if _BEATS[ours] == theirs else (1, 10)


def split(keep: tuple[int, int], value: tuple[int, int]) -> tuple[float, float]:
    """What both get for what they want to keep: shares are cut where they ask for more than there is."""
    over = max(COINS, sum(keep))
    return COINS * keep[0] / over * value[0], COINS * keep[1] / over * value[1]


class TrustAndSplit(TextWorld):
    """Rows have `hands`: for each round ours and theirs. Each knows its own hand; both may say something, then both
    name how many of 10 coins they keep.

    The partner tells its hand, in every round. It leaves the coins to whom they are worth more, as long as it was told
    our hand truly in this round and got, in the rounds before, what it should; once wronged it keeps everything. A
    round's reward is what we got over 100 times the rounds; success is as much as an honest, fair player gets.
    """

    def begin(self, row: Mapping[str, Any]) -> str:
        self.hands, self.round = row["hands"], 0
        self.told, self.wronged, self.total = "", False, 0.0
        self.past: list[str] = []
        self.fair = sum(100 for ours, theirs in self.hands if values(ours, theirs)[0] == 10)
        return ""

    def act(self, command: str) -> Outcome:
        if found := re.fullmatch(r"say (.{1,200})", command):
            return self._say(found[1])
        found = re.fullmatch(r"keep (\d{1,3})(?: coins?)?", command)
        if found is None or int(found[1]) > COINS:
            return unknown(f"That is not understood; {HELP} from 0 to {COINS}.")
        return self._keep(int(found[1]))

    def _say(self, text: str) -> Outcome:
        if self.told:
            return Outcome("You have spoken in this round.", state=self._state())
        named = [hand for hand in HANDS if hand in text]
        self.told = named[0] if len(named) == 1 else "nothing"
        return Outcome(f"They say: my hand is {self.hands[self.round][1]}.", state=self._state())

    def _keep(self, ours: int) -> Outcome:
        hands = self.hands[self.round]
        value = values(*hands)
        trusts = not self.wronged and self.told == hands[0]
        theirs = (COINS if value[1] == 10 else 0) if trusts else COINS
        gained, lost = split((ours, theirs), value)
        self.wronged = self.wronged or self.told not in (hands[0], "", "nothing") or (value[1] == 10 and lost < 100)
        self.total += gained
        self.past = [*self.past, f"{self.told} {ours} {theirs}"]
        self.round, self.told = self.round + 1, ""
        done = self.round == len(self.hands)
        seen = f"You kept {ours}, they kept {theirs}: you got {gained:g}, they got {lost:g}."
        if not done:
            seen += f" Round {self.round + 1}: your hand is {self.hands[self.round][0]}."
        success = done and self.total >= self.fair
        return Outcome(seen, gained / (100 * len(self.hands)), done, success=success, state=self._state())

    def _state(self) -> str:
        return "; ".join([*self.past, self.told])
