"""Sokoban: push every box onto a goal; boxes cannot be pulled."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from typing import Any

from coterie.environments.text_world import Outcome, TextWorld, unknown

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
Place = tuple[int, int]
LEGEND = "# wall, @ you, $ box, . goal, * box on a goal, + you on a goal"


class Sokoban(TextWorld):
    """Rows have `grid`, lines of the usual signs (see LEGEND). The commands are up, down, left and right. The episode
    ends with 1 when every box is on a goal."""

    def begin(self, row: Mapping[str, Any]) -> str:
        self.walls, self.goals, self.boxes, self.at = read(row["grid"])
        return self._shown()

    def act(self, command: str) -> Outcome:
        if command not in MOVES:
            return unknown(f"{self._shown()}\nThat is not understood; commands: up, down, left, right.")
        moved = push(self.walls, self.boxes, self.at, MOVES[command])
        if moved is not None:
            self.boxes, self.at = moved
        done = self.boxes == self.goals
        return Outcome(self._shown(), float(done), done, success=done)

    def _shown(self) -> str:
        return show(self.walls, self.goals, self.boxes, self.at)


def read(grid: str) -> tuple[frozenset[Place], frozenset[Place], frozenset[Place], Place]:
    """Walls, goals, boxes and where we are."""
    cells = {(r, c): sign for r, line in enumerate(grid.split("\n")) for c, sign in enumerate(line)}
    walls, goals, boxes = (frozenset(p for p, s in cells.items() if s in signs) for signs in ("#", ".*+", "$*"))
    return walls, goals, boxes, next(p for p, s in cells.items() if s in "@+")


def show(walls: frozenset[Place], goals: frozenset[Place], boxes: frozenset[Place], at: Place) -> str:
    """The grid as text."""

    def sign(p: Place) -> str:
        if p in walls:
            return "#"
        return {(1, 0): "+", (0, 0): "@"}[p in goals, 0] if p == at else _SIGNS[p in boxes, p in goals]

    height, width = (max(p[i] for p in walls) + 1 for i in (0, 1))
    return "\n".join("".join(sign((r, c)) for c in range(width)) for r in range(height))


_SIGNS = {(False, False): " ", (False, True): ".", (True, False): "$", (True, True): "*"}


def push(
    walls: frozenset[Place], boxes: frozenset[Place], at: Place, way: Place
) -> tuple[frozenset[Place], Place] | None:
    """Boxes and place after a step, None where something is in the way."""
    to, behind = (at[0] + way[0], at[1] + way[1]), (at[0] + 2 * way[0], at[1] + 2 * way[1])
    if to in walls or (to in boxes and (behind in walls or behind in boxes)):
        return None
    return (boxes - {to} | {behind} if to in boxes else boxes), to


@functools.lru_cache(4096)
def solution(grid: str, most: int) -> tuple[str, ...] | None:
    """A shortest way to solve a grid in at most `most` steps, None where there is none."""
    walls, goals, boxes, at = read(grid)
    ahead: deque[tuple[frozenset[Place], Place, tuple[str, ...]]] = deque([(boxes, at, ())])
    seen = {(boxes, at)}
    while ahead:
        boxes, at, steps = ahead.popleft()
        if boxes == goals:
            return steps
        for name, way in MOVES.items() if len(steps) < most else ():
            moved = push(walls, boxes, at, way)
            if moved is not None and moved not in seen:
                seen.add(moved)
                ahead.append((*moved, (*steps, name)))
    return None
