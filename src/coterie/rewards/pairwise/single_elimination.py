"""ArenaRL's tournament: seeds, a bracket, and places are the reward (arXiv:2601.06487)."""

from coterie.pieces import scheme
from coterie.rewards.pairwise.anchor import seeding
from coterie.rewards.pairwise.play import Game, by_place, meet


@scheme(paper="arXiv:2601.06487", min_group=2)
def single_elimination(size: int, *, both_orders: bool = True, neutral: float = 5.0) -> Game:
    """Place in a seeded knock-out: 1 for the champion, 0 for the last, evenly between. 2G-2 pairs.

    Everybody meets the group's first rollout; the points got there seed the bracket, in which the best seeds meet last.
    Neighbours in it meet. Of a pair with equal points the first goes on; where the number is odd the last goes on
    without a match and stands first in the next round. Losers are placed by the round they came to, in it by the mean
    of all their points, in order of the bracket where that is equal. both_orders: each pair is judged both ways round
    and the points are summed. neutral: what both get where there is no verdict, the middle of the judge's scale (that
    of probabilities is 5). There are places even where all are equal: they then say nothing.
    """
    seeds = yield from seeding(size, both_orders, neutral)
    points = [[seed] for seed in seeds]

    def mean(member: int) -> float:
        return sum(points[member]) / len(points[member])

    ranked = sorted(range(size), key=lambda member: -seeds[member])
    going = [ranked[place] for place in bracket(size)]
    out: list[list[int]] = []
    while len(going) > 1:
        pairs = list(zip(going[::2], going[1::2], strict=False))
        going = going[-1:] if len(going) % 2 else []
        lost = []
        for (i, j), (a, b) in zip(pairs, (yield from meet(pairs, both_orders, neutral)), strict=True):
            points[i].append(a)
            points[j].append(b)
            going.append(i if a >= b else j)
            lost.append(j if a >= b else i)
        out.append(sorted(lost, key=lambda member: -mean(member)))
    return by_place([*going, *(member for lost in reversed(out) for member in lost)])


def bracket(size: int) -> list[int]:
    """Seeds, 0 the best, in an order in which neighbours meet and the best two can meet only at the end."""
    order = [0]
    while len(order) < size:
        order = [seed for i in order for seed in (i, 2 * len(order) - 1 - i)]
    return [seed for seed in order if seed < size]
