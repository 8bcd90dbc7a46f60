"""BRPO's reward: better or not than a rollout of the group, drawn anew each time (arXiv:2506.00103)."""

import math

from numpy.random import Generator as Draw

from coterie.pieces import scheme
from coterie.rewards.pairwise.play import Game, meet


@scheme(paper="arXiv:2506.00103", min_group=2)
def bootstrapped(size: int, draw: Draw, *, both_orders: bool = False) -> Game:
    """+1 for a rollout with more points than the reference, -1 for others, 0 for the reference. G-1 pairs, one round.

    The reference is a rollout of the group, drawn by chance at each step. A tie is a loss, so that being as good as it
    pays nothing; a pair without a verdict is worth 0. both_orders: each pair is judged both ways round and the points
    are summed; else the reference is shown second.
    """
    reference = int(draw.integers(size))
    out = [0.0] * size
    pairs = [(member, reference) for member in range(size) if member != reference]
    for (member, _), (a, b) in zip(pairs, (yield from meet(pairs, both_orders)), strict=True):
        out[member] = 0.0 if math.isnan(a) else 1.0 if a > b else -1.0
    return out
