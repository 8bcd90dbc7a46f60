"""A household in text, in the manner of ALFWorld: find a thing, do something to it, put it where it belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

OPENABLE = ("drawer", "cabinet", "fridge", "microwave")
OPEN = ("table", "shelf", "sink", "sofa")
TOOLS = {"clean": "sink", "heat": "microwave", "cool": "fridge"}
"""Where a thing is cleaned, heated and cooled."""
THINGS = ("apple", "mug", "plate", "spoon", "potato", "cloth", "pan", "egg")
STATES = {"clean": "clean", "heat": "hot", "cool": "cold"}
HELP = "commands: go to PLACE, open PLACE, take THING from PLACE, put THING on PLACE, clean|heat|cool THING with PLACE"


class Household(TextWorld):
    """Rows have `places` (each with the things in it), `thing`, `need` (clean, heat, cool or none) and `goal`, a place.

    The episode succeeds, with 1, when the thing is in the goal and is as it is needed. What is in a closed place is not
    seen. One thing is carried at a time.
    """

    def begin(self, row: Mapping[str, Any]) -> str:
        self.places = {place: list(things) for place, things in row["places"].items()}
        self.opened: set[str] = set()
        self.thing, self.need, self.goal = row["thing"], row["need"], row["goal"]
        self.at, self.held = "", ""
        self.made: dict[str, str] = {}
        return self._state()

    def act(self, command: str) -> Outcome:
        if found := re.fullmatch(r"go to (\w+ \d+)", command):
            return self._go(found[1])
        if found := re.fullmatch(r"open (\w+ \d+)", command):
            return self._open(found[1])
        if found := re.fullmatch(r"take (\w+) from (\w+ \d+)", command):
            return self._take(found[1], found[2])
        if found := re.fullmatch(r"put (\w+) (?:in|on|in/on) (\w+ \d+)", command):
            return self._put(found[1], found[2])
        if found := re.fullmatch(r"(clean|heat|cool) (\w+) with (\w+ \d+)", command):
            return self._treat(found[1], found[2], found[3])
        return unknown(f"That is not understood; {HELP}.")

    def _go(self, place: str) -> Outcome:
        if place not in self.places:
            return self._nothing(f"There is no {place}.")
        self.at = place
        return Outcome(f"You are at {place}. {self._seen(place)}", state=self._state())

    def _open(self, place: str) -> Outcome:
        if place != self.at or not place.startswith(OPENABLE):
            return self._nothing()
        self.opened.add(place)
        return Outcome(f"{place} is open. {self._seen(place)}", state=self._state())

    def _take(self, thing: str, place: str) -> Outcome:
        if place != self.at or self.held or not self._reached(place) or thing not in self.places[place]:
            return self._nothing()
        self.places[place].remove(thing)
        self.held = thing
        return Outcome(f"You hold the {thing}.", state=self._state())

    def _put(self, thing: str, place: str) -> Outcome:
        if place != self.at or thing != self.held or not thing or not self._reached(place):
            return self._nothing()
        self.places[place].append(thing)
        self.held = ""
        done = thing == self.thing and place == self.goal and (self.need == "none" or self.made.get(thing) == self.need)
        return Outcome(
            f"The {thing} is now at {place}." + (" Well done." if done else ""), float(done), done, success=done,
            state=self._state(),
        )  # fmt: skip

    def _treat(self, how: str, thing: str, place: str) -> Outcome:
        if place != self.at or thing != self.held or not place.startswith(TOOLS[how]):
            return self._nothing()
        self.made[thing] = how
        return Outcome(f"The {thing} is {STATES[how]} now.", state=self._state())

    def _reached(self, place: str) -> bool:
        return not place.startswith(OPENABLE) or place in self.opened

    def _seen(self, place: str) -> str:
        if not self._reached(place):
            return "It is closed."
        things = self.places[place]
        return "You see " + (", ".join(things) if things else "nothing") + "."

    def _nothing(self, why: str = "Nothing happens.") -> Outcome:
        return Outcome(why, state=self._state())

    def _state(self) -> str:
        return repr((self.at, self.held, sorted(self.opened), sorted(self.made.items()), self.places))
