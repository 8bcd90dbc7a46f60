"""Wordle: find a word of five letters; each guess is answered letter by letter."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

WORDS = tuple(
    """about alarm angle apple beach bread brick brown cabin candy chair chalk chest clock cloud coast crane crowd crown
    dance delta dream dress earth eight empty fence field flame flood floor forge fruit ghost giant glass globe grape
    grass green guard guest happy heart honey horse house image ivory jelly judge knife label lemon light limit linen
    logic lunch magic maple march metal model money month motor mouse music night north novel nurse ocean olive onion
    paint panel paper party peach pearl piano pilot plane plant plate point pound price pride prize queen quick radio
    raven river robin rocky round salad scale scarf shade sheep shelf shirt shore skirt sleep smile snake solar spice
    spoon stage steam stone storm sugar table taste tiger toast tooth tower trail train truck uncle value video visit
    voice wagon water whale wheat wheel white woman world yield youth zebra""".split()
)


class Wordle(TextWorld):
    """Rows have `target`. A command is a word of the list, and it is answered with g (right place), y (elsewhere) or b
    (not there) for each letter. The right word ends the episode with 1, the sixth wrong one with 0.

    Letters that occur twice are counted: of two guessed copies one is yellow where the word has one.
    """

    def begin(self, row: Mapping[str, Any]) -> str:
        self.target = row["target"]
        self.said: list[str] = []
        return ""

    def act(self, command: str) -> Outcome:
        if command not in WORDS:
            return unknown("That is not a word of the list: guess one word of five letters.")
        found = feedback(command, self.target)
        self.said = [*self.said, f"{command} {found}"]
        right, state = command == self.target, " ".join(self.said)
        return Outcome(f"{command} {found}", float(right), right or len(self.said) == 6, success=right, state=state)


@functools.lru_cache(100_000)
def feedback(guess: str, target: str) -> str:
    """g, y or b for each letter of a guess."""
    left = Counter(t for g, t in zip(guess, target, strict=True) if g != t)
    out = []
    for g, t in zip(guess, target, strict=True):
        out.append("g" if g == t else "y" if left[g] > 0 else "b")
        left[g] -= g != t
    return "".join(out)


def best_guess(said: Sequence[tuple[str, str]]) -> str:
    """The word that leaves the fewest words possible at worst, after these guesses and answers; of equal ones one that
    is possible itself."""
    if not said:
        return "steam"  # what the search below finds, which takes a second
    left = [w for w in WORDS if all(feedback(guess, w) == found for guess, found in said)]
    known = set(left)
    if len(left) < 3:
        return left[0]

    def worst(guess: str) -> tuple[int, bool]:
        return max(Counter(feedback(guess, w) for w in left).values()), guess not in known

    return min(WORDS, key=worst)
