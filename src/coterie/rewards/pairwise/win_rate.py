"""Pref-GRPO's reward: the share of the others that a rollout is preferred to (arXiv:2508.20751)."""

from collections.abc import Generator
from itertools import combinations

from coterie.pieces import scheme
from coterie.rewards.pairwise.judge import Points
from coterie.rewards.pairwise.play import Game, Pair, meet


@scheme(paper="arXiv:2508.20751", min_group=2)
def win_rate(size: int, *, both_orders: bool = False) -> Game:
    """Wins over all others in the group, divided by their number. G(G-1)/2 pairs, in one round.

    A tie, and a pair without a verdict, is half a win to both. both_orders: each pair is judged both ways round and
    the points are summed, against position bias, for twice the calls; else the earlier rollout is shown first.
    """
    wins = yield from everyone(size, both_orders)
    return [w / max(size - 1, 1) for w in wins]


def everyone(size: int, both_orders: bool) -> Generator[list[Pair], list[Points | None], list[float]]:
    """Wins of each member after every pair has met; a tie is half a win."""
    wins = [0.0] * size
    pairs = list(combinations(range(size), 2))
    for (i, j), (a, b) in zip(pairs, (yield from meet(pairs, both_orders)), strict=True):
        wins[i] += 1.0 if a > b else 0.0 if b > a else 0.5
        wins[j] += 1.0 if b > a else 0.0 if a > b else 0.5
    return wins
