"""A grid of ice with holes: walk to the goal."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from coterie.environments.base import Step

MOVES = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
END = ">"


class FrozenLake:
    """Rows have `grid` (lines of ".", "o" holes, "g" the goal) and `start` (row, column).

    The first letter of an action is a direction, one of u d l r; anything else, and a walk into the wall, stays where
    it is. An observation is the grid with "a" where we are. A hole ends the episode with 0, the goal with 1.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        self.grid, self.at = row["grid"].split("/"), tuple(row["start"])
        return show(self.grid, self.at)

    def step(self, action: str) -> Step:
        down, right = MOVES.get(action.strip()[:1], (0, 0))
        last = len(self.grid) - 1
        self.at = (min(max(self.at[0] + down, 0), last), min(max(self.at[1] + right, 0), last))
        here = self.grid[self.at[0]][self.at[1]]
        return Step(show(self.grid, self.at), float(here == "g"), here != ".", {"success": here == "g"})


def show(grid: list[str], at: tuple[int, ...]) -> str:
    """The grid, with "a" at a place."""
    lines = [line[: at[1]] + "a" + line[at[1] + 1 :] if r == at[0] else line for r, line in enumerate(grid)]
    return "/".join(lines) + END


def way(shown: str) -> str:
    """The first step of a shortest way from "a" to "g", "" where there is none. Of equal ones, in the order u d l r."""
    grid = shown.rstrip(END).split("/")
    place = {cell: (r, c) for r, line in enumerate(grid) for c, cell in enumerate(line) if cell in "ag"}
    ahead: deque[tuple[tuple[int, int], str]] = deque([(place["a"], "")])
    seen = {place["a"]}
    while ahead:
        (r, c), first = ahead.popleft()
        if grid[r][c] == "g":
            return first
        for name, (down, right) in MOVES.items():
            to = (r + down, c + right)
            if to not in seen and 0 <= to[0] < len(grid) and 0 <= to[1] < len(grid) and grid[to[0]][to[1]] != "o":
                seen.add(to)
                ahead.append((to, first or name))
    return ""
