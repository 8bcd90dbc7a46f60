"""A simulated user with an emotion, who wants to be understood (RLVER, arXiv:2507.03112)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

BEGIN, CALM, LOST, TURNS = 30, 100, 10, 8
"""Emotion at the beginning, at which the talk ends well, under which it ends badly, and the most turns."""
WISHES = ("acknowledge", "ask", "advise")
_MOVES = {
    "dismiss": re.compile(r"calm down|get over|not a big deal|stop (?:complain|whin)|could be worse|cheer up"),
    "acknowledge": re.compile(r"sorry|understand|i hear|sounds (?:hard|rough|difficult)|must be|makes sense|feel"),
    "ask": re.compile(r"\b(?:what|how|why|when|who|tell me)\b[^?]*\?|tell me more"),
    "advise": re.compile(r"\byou could\b|\bhave you tried\b|\btry\b|\bi suggest\b|\bwould it help\b|\byou might\b"),
}
_SAYS = {
    "acknowledge": "I just feel nobody sees how much this weighs on me.",
    "ask": "There is more to it, but nobody ever wants to know.",
    "advise": "I really do not know what to do next about it.",
}
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class EmotionalUser:
    """Rows have `topic` and `wishes`: what the user wants to hear, turn after turn (the last one for good).

    A reply is understood by keywords: it acknowledges, asks, advises or dismisses. One that does what is wished for
    raises the emotion, more so where it names the topic; advice that comes too early, being dismissed and hearing the
    same words again lower it. The talk ends at an emotion of 100, under 10, or after 8 turns, and then gives the
    emotion over 100. Success is 100. think: replies must begin with <think>…</think>, which the user does not hear;
    one that does not ends the talk with 0.
    """

    def __init__(self, *, think: bool = False) -> None:
        self.think = think

    def reset(self, row: Mapping[str, Any]) -> str:
        self.row, self.emotion, self.at, self.turn = row, BEGIN, 0, 0
        self.heard: set[str] = set()
        return self._state()

    def step(self, action: str) -> Step:
        if self.think and not _THOUGHT.match(action):
            return Step(self._spoken("…"), 0.0, True, {"success": False, "valid": False, "emotion": self.emotion})
        reply = " ".join(_THOUGHT.sub("", action).lower().split())
        self.turn += 1
        change = self._change(reply)
        self.heard.add(reply)
        self.emotion = min(self.emotion + change, CALM)
        done = self.emotion >= CALM or self.emotion < LOST or self.turn == TURNS
        info = {
            "success": self.emotion >= CALM, "valid": bool(reply), "emotion": self.emotion, "change": change,
            "state": self._state(),
        }  # fmt: skip
        return Step(self._spoken(self._says(change)), max(self.emotion, 0) / 100 if done else 0.0, done, info)

    def _change(self, reply: str) -> int:
        moves = {name for name, pattern in _MOVES.items() if pattern.search(reply)}
        wish = self._wish()
        if not reply or "dismiss" in moves:
            return -20
        if reply in self.heard:
            return -10
        if wish in moves:
            self.at += 1
            return 15 + 5 * (self.row["topic"] in reply)
        if "advise" in moves:
            return -10
        return 5 if moves else -5

    def _wish(self) -> str:
        wishes = self.row["wishes"]
        return str(wishes[min(self.at, len(wishes) - 1)])

    def _says(self, change: int) -> str:
        if self.emotion >= CALM:
            return "Thank you. I feel so much better now."
        if self.emotion < LOST:
            return "I do not want to talk any more."
        mood = "Yes, exactly." if change >= 15 else "Hm." if change > 0 else "You are not listening."
        return f"{mood} {_SAYS[self._wish()]}"

    def _state(self) -> str:
        return repr((self.turn, self.emotion, self.at, sorted(self.heard)))

    def _spoken(self, text: str) -> str:
        return f"\nUser: {text}\nYou: " if isinstance(self.row["prompt"], str) else text
