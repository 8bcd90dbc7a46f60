"""The iterated prisoner's dilemma: two players, each round both cooperate (c) or defect (d)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

COOPERATE, DEFECT = "c", "d"
PLAYERS = ("left", "right")


class Dilemma:
    """Each is answered with what the other did, in rounds that both play at once. Anything but "c" is a defection.

    `payoffs` are those of (both cooperate, I am exploited, I exploit, both defect). The verdict is that both cooperated
    in the last round.
    """

    def __init__(self, rounds: int, payoffs: tuple[float, float, float, float]) -> None:
        self.rounds = rounds
        together, exploited, exploits, apart = payoffs
        self.worth = {(True, True): together, (True, False): exploited, (False, True): exploits, (False, False): apart}

    def reset(self, row: Mapping[str, Any]) -> None:
        self.round = 0

    def step(self, actions: Mapping[str, str]) -> dict[str, Step]:
        self.round += 1
        kind = {name: actions[name] == COOPERATE for name in PLAYERS}
        out = {}
        for me, other in (PLAYERS, PLAYERS[::-1]):
            said = (COOPERATE if kind[other] else DEFECT) + ">"
            info = {"success": kind[me] and kind[other], "cooperated": kind[me]}
            out[me] = Step(said, self.worth[kind[me], kind[other]], self.round == self.rounds, info)
        return out
