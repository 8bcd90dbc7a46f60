"""A Swiss tournament: a few rounds, in each of which those with equal scores meet (ArenaRL, arXiv:2601.06487)."""

import math

from numpy.random import Generator as Draw

from coterie.pieces import scheme
from coterie.rewards.pairwise.play import Game, Pair, meet


@scheme(paper="arXiv:2601.06487", min_group=2)
def swiss(size: int, draw: Draw, *, rounds: int | None = None, both_orders: bool = True) -> Game:
    """Place by wins, then by the wins of those met, match by match; equal ones share the mean. rounds * G/2 pairs.

    The reward is 1 for the first place, 0 for the last, evenly between. rounds: ceil(log2 G) where it is not given, at
    most G-1. In each the highest meets the next that it has not met; who are equal are in an order drawn by chance. A
    tie, and a pair without a verdict, is half a win to both; where the number is odd the lowest has a win without a
    match. both_orders: each pair is judged both ways round and the points are summed.
    """
    wins, met = [0.0] * size, [list[int]() for _ in range(size)]
    for _ in range(min(rounds or math.ceil(math.log2(size)), size - 1)):
        order = sorted(draw.permutation(size).tolist(), key=lambda member: -wins[member])
        pairs, free = pairing(order, met)
        for (i, j), (a, b) in zip(pairs, (yield from meet(pairs, both_orders)), strict=True):
            wins[i] += 1.0 if a > b else 0.0 if b > a else 0.5
            wins[j] += 1.0 if b > a else 0.0 if a > b else 0.5
            met[i].append(j)
            met[j].append(i)
        for member in free:
            wins[member] += 1.0
    score = [(wins[member], sum(wins[other] for other in met[member])) for member in range(size)]
    above = [sum(other > mine for other in score) for mine in score]
    equal = [sum(other == mine for other in score) for mine in score]
    return [1.0 - (a + (e - 1) / 2) / max(size - 1, 1) for a, e in zip(above, equal, strict=True)]


def pairing(order: list[int], met: list[list[int]]) -> tuple[list[Pair], list[int]]:
    """Each with the next one that it has not met, or the next one at all; and who is left over."""
    rest, pairs = list(order), []
    free = [rest.pop()] if len(rest) % 2 else []
    while rest:
        first = rest.pop(0)
        other = next((member for member in rest if member not in met[first]), rest[0])
        rest.remove(other)
        pairs.append((first, other))
    return pairs, free
