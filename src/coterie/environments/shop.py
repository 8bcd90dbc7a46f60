"""A shop in text, in the manner of WebShop: search, look at what is found, choose and buy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

KINDS = ("shirt", "lamp", "bag", "mug", "chair", "clock")
TRAITS = ("light", "warm", "quiet", "strong", "soft", "plain", "bright", "small")
COLOURS = ("red", "blue", "green", "black", "white")
SIZES = ("s", "m", "l")
PAGE = 4
"""Items on a page of results."""
HELP = "commands: search WORDS, next, back, look NUMBER, choose COLOUR or SIZE, buy"


class Shop(TextWorld):
    """Rows have `items` (dicts of name, kind, traits, price, colours) and `goal` (kind, traits, colour, size, price).

    Buying ends the episode. Its reward is WebShop's: the share of what was asked for that is met (traits, colour, size
    and price), 0 where the kind of thing is another; 1 is success.
    """

    def begin(self, row: Mapping[str, Any]) -> str:
        self.items, self.goal = row["items"], row["goal"]
        self.found: list[int] = []
        self.page, self.item = 0, -1
        self.chosen: dict[str, str] = {}
        return self._state()

    def act(self, command: str) -> Outcome:
        if found := re.fullmatch(r"search (.+)", command):
            words = set(found[1].split())
            scores = [len(words & _words(item)) for item in self.items]
            self.found = sorted((i for i, s in enumerate(scores) if s), key=lambda i: (-scores[i], i))
            self.page, self.item, self.chosen = 0, -1, {}
            return self._results()
        if command in ("next", "back"):
            last = max((len(self.found) - 1) // PAGE, 0)
            leaves = self.item >= 0 and command == "back"
            self.page = self.page if leaves else min(max(self.page + (1 if command == "next" else -1), 0), last)
            self.item = -1
            return self._results()
        if found := re.fullmatch(r"look (\d{1,4})", command):
            if int(found[1]) not in self.found:
                return self._out("There is no such item in what was found.")
            self.item, self.chosen = int(found[1]), {}
            item = self.items[self.item]
            return self._out(
                f"{item['name']}: a {item['kind']}, {', '.join(item['traits'])}; {item['price']} dollars; colours "
                f"{', '.join(item['colours'])}; sizes {', '.join(SIZES)}"
            )
        if found := re.fullmatch(r"choose (\w+)", command):
            return self._choose(found[1])
        if command == "buy":
            return self._buy()
        return unknown(f"That is not understood; {HELP}.")

    def _choose(self, option: str) -> Outcome:
        if self.item < 0:
            return self._out("Look at an item first.")
        if option in self.items[self.item]["colours"]:
            self.chosen["colour"] = option
        elif option in SIZES:
            self.chosen["size"] = option
        else:
            return self._out(f"There is no {option} of this.")
        return self._out("Chosen: " + ", ".join(self.chosen.values()))

    def _buy(self) -> Outcome:
        if self.item < 0:
            return self._out("Look at an item first.")
        score = worth(self.items[self.item], self.chosen, self.goal)
        return Outcome("Bought.", score, True, success=score == 1.0, state=self._state())

    def _results(self) -> Outcome:
        shown = self.found[self.page * PAGE : (self.page + 1) * PAGE]
        lines = [f"{i}: {self.items[i]['name']}, {self.items[i]['price']} dollars" for i in shown]
        return self._out("\n".join(lines) or "Nothing found.")

    def _out(self, seen: str) -> Outcome:
        return Outcome(seen, state=self._state())

    def _state(self) -> str:
        return repr((self.found, self.page, self.item, sorted(self.chosen.items())))


def _words(item: Mapping[str, Any]) -> set[str]:
    return {*item["name"].lower().split(), item["kind"], *item["traits"], *item["colours"]}


def worth(item: Mapping[str, Any], chosen: Mapping[str, str], goal: Mapping[str, Any]) -> float:
    """How much of what was asked for an item with these options is, from 0 to 1."""
    if item["kind"] != goal["kind"]:
        return 0.0
    met = [trait in item["traits"] for trait in goal["traits"]]
    met += [chosen.get("colour") == goal["colour"], chosen.get("size") == goal["size"], item["price"] <= goal["price"]]
    return sum(met) / len(met)
