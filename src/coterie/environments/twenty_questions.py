"""Twenty questions: which thing is thought of, by questions that are answered yes or no."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

PROPERTIES: dict[str, str] = {
    "alive": "dog cat horse eagle salmon bee oak rose cactus snake whale frog",
    "an animal": "dog cat horse eagle salmon bee snake whale frog",
    "a plant": "oak rose cactus",
    "able to fly": "eagle bee plane kite",
    "at home in water": "salmon whale frog boat",
    "bigger than a person": "horse whale oak car plane boat piano house",
    "made of metal": "car plane spoon coin key",
    "something to eat": "salmon apple bread cheese",
    "a pet": "dog cat",
    "something with wheels": "car plane bicycle",
    "something that makes music": "piano drum flute",
    "found in a kitchen": "spoon apple bread cheese knife",
    "sharp": "knife cactus rose",
    "sweet": "apple",
    "made from milk": "cheese",
    "furry": "dog cat bee",
    "made of wood": "oak piano drum flute chair",
    "a place to sleep": "house tent",
    "something to sit on": "horse chair bicycle",
    "round": "coin drum apple",
    "green": "oak cactus frog rose",
    "red": "apple rose",
    "without legs": "snake salmon whale",
    "made of cloth": "tent kite",
    "used to open doors": "key",
    "able to jump far": "frog horse cat",
}
"""Each property, and the things that have it."""
THINGS = tuple(sorted({thing for things in PROPERTIES.values() for thing in things.split()}))
_HAVE = {prop: frozenset(things.split()) for prop, things in PROPERTIES.items()}


class TwentyQuestions(TextWorld):
    """Rows have `secret` and `things`, of which it is one. "is it PROPERTY" is answered yes or no; "is it a THING" ends
    the episode with 1 where that is right, and is answered no elsewhere."""

    def begin(self, row: Mapping[str, Any]) -> str:
        self.secret = row["secret"]
        self.asked: list[str] = []
        return ""

    def act(self, command: str) -> Outcome:
        found = re.fullmatch(r"is it (?:(?:an? |the )?(\w+)|(.+?))\??", command)
        what = command.removeprefix("is it ").rstrip("?").strip() if found else ""
        thing = re.sub(r"^(an?|the) ", "", what)
        if thing in THINGS:
            right = thing == self.secret
            return self._said("yes" if right else "no", what, float(right), right)
        if what not in _HAVE:
            return unknown("That is no question that can be answered; ask: is it PROPERTY, or: is it a THING.")
        return self._said("yes" if self.secret in _HAVE[what] else "no", what)

    def _said(self, answer: str, what: str, reward: float = 0.0, done: bool = False) -> Outcome:
        self.asked = [*self.asked, f"{what}: {answer}"]
        return Outcome(answer, reward, done, success=done, state="; ".join(self.asked))


def best_question(things: Sequence[str]) -> str:
    """The question that comes nearest to halving what is left; the thing itself where no property tells them apart."""
    if len(things) == 1:
        return f"is it a {things[0]}"

    def off(prop: str) -> int:
        return abs(2 * len(_HAVE[prop] & set(things)) - len(things))

    best = min(_HAVE, key=off)
    return f"is it a {things[0]}" if off(best) == len(things) else f"is it {best}"


def still_possible(things: Sequence[str], said: Sequence[tuple[str, str]]) -> list[str]:
    """Things that fit the answers to questions."""
    left = list(things)
    for question, answer in said:
        what = question.removeprefix("is it ")
        left = [t for t in left if (t in _HAVE.get(what, {what.removeprefix("a ")})) == (answer == "yes")]
    return left
