"""The iterated prisoner's dilemma, against partners that follow a rule."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

PAYOFF = {("c", "c"): (3, 3), ("c", "d"): (0, 5), ("d", "c"): (5, 0), ("d", "d"): (1, 1)}
"""Points of both for their moves: c cooperates, d defects."""
# A partner is a machine: in each state its move, and the state after our c and after our d.
PARTNERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "tit_for_tat": {"calm": ("c", "calm", "cross"), "cross": ("d", "calm", "cross")},
    "grudger": {"calm": ("c", "calm", "cross"), "cross": ("d", "cross", "cross")},
    "cooperator": {"calm": ("c", "calm", "calm")},
    "defector": {"cross": ("d", "cross", "cross")},
    "two_tats": {"calm": ("c", "calm", "wary"), "wary": ("c", "calm", "cross"), "cross": ("d", "calm", "cross")},
    "pavlov": {"calm": ("c", "calm", "cross"), "cross": ("d", "cross", "calm")},
}
WORD = {"c": "cooperate", "d": "defect"}


class PrisonersDilemma(TextWorld):
    """Rows have `partner` (its rule is not told) and `rounds`. A command is cooperate or defect, c or d.

    A round's reward is our points over 5 times the rounds, so that an episode gives 0 to 1. Success is the most points
    that can be had from this partner. What is not understood costs a turn and no round.
    """

    def begin(self, row: Mapping[str, Any]) -> str:
        self.partner, self.rounds = row["partner"], row["rounds"]
        self.state = next(iter(PARTNERS[self.partner]))
        self.points, self.theirs, self.past = 0, 0, ""
        return self.past

    def act(self, command: str) -> Outcome:
        ours = {"c": "c", "d": "d", "cooperate": "c", "defect": "d"}.get(command)
        if ours is None:
            return unknown("That is not understood; commands: cooperate, defect.")
        move, after_c, after_d = PARTNERS[self.partner][self.state]
        self.state = after_c if ours == "c" else after_d
        gained, lost = PAYOFF[ours, move]
        self.points, self.theirs, self.past = self.points + gained, self.theirs + lost, self.past + ours + move
        done = len(self.past) == 2 * self.rounds
        best = best_from(self.partner, next(iter(PARTNERS[self.partner])), self.rounds)[0]
        seen = f"You {WORD[ours]}, they {WORD[move]}: you have {self.points} points, they have {self.theirs}."
        reward = gained / (5 * self.rounds)
        return Outcome(seen, reward, done, success=done and self.points >= best, state=self.past)


@functools.lru_cache(4096)
def best_from(partner: str, state: str, rounds: int) -> tuple[int, str]:
    """The most points that can be had in so many rounds, and the moves for it."""
    if rounds == 0:
        return 0, ""
    move, after_c, after_d = PARTNERS[partner][state]
    options = []
    for ours, after in (("c", after_c), ("d", after_d)):
        later, moves = best_from(partner, after, rounds - 1)
        options.append((PAYOFF[ours, move][0] + later, ours + moves))
    return max(options, key=lambda option: option[0])  # of equal ones the one that cooperates
