"""Everybody meets everybody, and ranks by wins are the reward (ArenaRL, arXiv:2601.06487)."""

from coterie.pieces import scheme
from coterie.rewards.pairwise.play import Game, by_rank
from coterie.rewards.pairwise.win_rate import everyone


@scheme(paper="arXiv:2601.06487", min_group=2)
def round_robin(size: int, *, both_orders: bool = True) -> Game:
    """Rank by wins: 1 for the best, 0 for the worst rank, evenly between. G(G-1)/2 pairs, in one round.

    Equal numbers of wins share the better rank; where all are equal everyone gets 0. A tie, and a pair without a
    verdict, is half a win to both. both_orders: each pair is judged both ways round and the points are summed.
    """
    return by_rank((yield from everyone(size, both_orders)))
