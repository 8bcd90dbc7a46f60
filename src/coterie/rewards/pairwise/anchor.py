"""Everybody meets the first rollout, and ranks by the points got there are the reward (ArenaRL, arXiv:2601.06487)."""

from coterie.pieces import scheme
from coterie.rewards.pairwise.play import Game, by_rank, meet


@scheme(paper="arXiv:2601.06487", min_group=2)
def anchor(size: int, *, both_orders: bool = True, neutral: float = 5.0) -> Game:
    """Rank by the points against the group's first rollout, whose own are the mean of what it got. G-1 pairs.

    The rewards are those of round_robin, of points instead of wins, so it wants a judge that gives scores. both_orders:
    each pair is judged both ways round and the points are summed. neutral: what both get where there is no verdict, the
    middle of the judge's scale (that of probabilities is 5).
    """
    return by_rank((yield from seeding(size, both_orders, neutral)))


def seeding(size: int, both_orders: bool, neutral: float) -> Game:
    """Points of each member against the first."""
    met = yield from meet([(k, 0) for k in range(1, size)], both_orders, neutral)
    return [sum(b for _, b in met) / max(len(met), 1), *(a for a, _ in met)]
