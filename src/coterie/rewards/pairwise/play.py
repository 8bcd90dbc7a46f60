"""Games of all groups played together: each round's pairs of every group go to the judge in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

from coterie.rewards.pairwise.judge import Points

Pair = tuple[int, int]
Game = Generator[list[Pair], list[Points | None], list[float]]
"""A scheme over one group: yields pairs of its members in the order they are shown, is sent the judge's verdicts (None
where there is none), and returns a reward for each member."""
Ask = Callable[[list[tuple[int, int, int]]], list[Points | None]]
"""(game, first, second) of each pair -> verdicts."""


def play(games: Sequence[Game], ask: Ask) -> list[list[float]]:
    """The rewards of every game. A game that asked and heard nothing at all gives NaN to everyone."""
    results: dict[int, list[float]] = {}
    heard: set[int] = set()
    asking: dict[int, list[Pair]] = {}

    def go_on(number: int, verdicts: list[Points | None] | None) -> None:
        try:
            asking[number] = next(games[number]) if verdicts is None else games[number].send(verdicts)
        except StopIteration as end:
            results[number] = end.value

    asked: set[int] = set()
    for number in range(len(games)):
        go_on(number, None)
    while asking:
        waiting, asking = asking, {}
        verdicts = ask([(number, i, j) for number, pairs in waiting.items() for i, j in pairs])
        at = 0
        for number, pairs in waiting.items():
            mine, at = verdicts[at : at + len(pairs)], at + len(pairs)
            asked.add(number)
            if any(v is not None for v in mine):
                heard.add(number)
            go_on(number, mine)
    nothing = asked - heard
    return [[math.nan] * len(results[n]) if n in nothing else results[n] for n in range(len(games))]


def meet(
    pairs: list[Pair], both_orders: bool, neutral: float | None = None
) -> Generator[list[Pair], list[Points | None], list[Points]]:
    """Points of each pair, summed over the orders in which it is shown.

    An order without a verdict gives `neutral` to both, or where that is None nothing; NaN where no order has one.
    """
    if not pairs:
        return []
    verdicts = yield [*pairs, *((j, i) for i, j in pairs)] if both_orders else pairs
    out = []
    for k in range(len(pairs)):
        shown = [verdicts[k]]
        if both_orders:
            back = verdicts[k + len(pairs)]
            shown.append(None if back is None else (back[1], back[0]))
        if neutral is not None:
            shown = [(neutral, neutral) if v is None else v for v in shown]
        known = [v for v in shown if v is not None] or [(math.nan, math.nan)]
        out.append((sum(v[0] for v in known), sum(v[1] for v in known)))
    return out


def by_place(order: Sequence[int]) -> list[float]:
    """Members from best to worst -> 1 for the first, 0 for the last, evenly between."""
    out = [0.0] * len(order)
    for place, member in enumerate(order):
        out[member] = 1.0 - place / max(len(order) - 1, 1)
    return out


def by_rank(scores: Sequence[float]) -> list[float]:
    """1 for the highest, 0 for the lowest; equal ones share the better rank. All equal: 0 for everyone."""
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    last = max(ranks)
    return [0.0 if last == 1 else (last - rank) / (last - 1) for rank in ranks]
