"""Two games about tiny pictures, written cell by cell as letters: draw what was described, and tell what was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Answers, Step

SPEAKER, PAINTER, READER = "describe", "draw", "read"


class Redraw:
    """`describe` sees a picture and has a few characters, from which `draw` draws it again, a number of times. Of a
    description that is longer `draw` sees nothing.

    Rows have `picture`. A drawing earns its share of cells that are as in the picture, and a description what the
    drawings made of it earn on average. Success is a drawing, or all of them, without a fault.
    """

    def __init__(self, characters: int, drawings: int) -> None:
        self.characters, self.drawings = characters, drawings

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.picture: str = row["picture"]
        self.earned: list[float] = []
        return {SPEAKER: ""}

    def step(self, actions: Mapping[str, str]) -> dict[str, Answers]:
        if SPEAKER in actions:
            said = actions[SPEAKER]
            self.description = ("" if len(said) > self.characters else said) + ">"
            return {PAINTER: Step(self.description)}
        alike = share_alike(actions[PAINTER], self.picture)
        self.earned.append(alike)
        drawn = Step("", alike, True, {"success": alike == 1.0})
        if len(self.earned) < self.drawings:
            return {PAINTER: [drawn, Step(self.description)]}
        mean = sum(self.earned) / len(self.earned)
        return {PAINTER: drawn, SPEAKER: Step("", mean, True, {"success": mean == 1.0})}


class DrawAndRead:
    """`draw` draws a picture with so many cells of each colour, and `read` is asked, a number of times, how many there
    are of one.

    Rows have `counts`, by colour, and `asked`, a colour. The right answer is the number that was to be drawn; it is
    known to be true of the picture only where that is right. A drawing earns its share of cells that fit, an answer 1
    where it is right. What is known of either has `picture`, that share, and `answer`: whether this answer was right,
    of a drawing the share of answers that were.
    """

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def reset(self, row: Mapping[str, Any]) -> dict[str, str]:
        self.counts: Mapping[str, int] = row["counts"]
        self.asked: str = row["asked"]
        self.right: list[float] = []
        return {PAINTER: ""}

    def step(self, actions: Mapping[str, str]) -> dict[str, Answers]:
        if PAINTER in actions:
            drawn = actions[PAINTER]
            self.fits = share_that_fits(drawn, self.counts)
            self.question = f"{drawn} {self.asked}>"
            return {READER: Step(self.question)}
        right = float(actions[READER] == str(self.counts[self.asked]))
        self.right.append(right)
        told = Step("", right, True, {"success": right == 1.0, "picture": self.fits, "answer": right})
        if len(self.right) < self.answers:
            return {READER: [told, Step(self.question)]}
        known = {"success": self.fits == 1.0, "picture": self.fits, "answer": sum(self.right) / len(self.right)}
        return {READER: told, PAINTER: Step("", self.fits, True, known)}


def share_alike(drawn: str, picture: str) -> float:
    """Cells of the picture that are the same in the drawing, a share; what is too long is a fault of the last cell."""
    same = sum(a == b for a, b in zip(drawn, picture, strict=False))
    return max(same - (len(drawn) > len(picture)), 0) / len(picture)


def share_that_fits(drawn: str, counts: Mapping[str, int]) -> float:
    """Cells that are asked for and there, over those that are asked for or there."""
    there = sum(min(drawn.count(colour), count) for colour, count in counts.items())
    return there / max(len(drawn), sum(counts.values()))
