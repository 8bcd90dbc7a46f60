"""A knock-out in which a rollout is out when it has lost twice (ArenaRL, arXiv:2601.06487)."""

from collections.abc import Generator

from numpy.random import Generator as Draw

from coterie.pieces import scheme
from coterie.rewards.pairwise.judge import Points
from coterie.rewards.pairwise.play import Game, Pair, by_place, meet

Round = Generator[list[Pair], list[Points | None], tuple[list[int], list[int]]]


@scheme(paper="arXiv:2601.06487", min_group=2)
def double_elimination(size: int, draw: Draw, *, both_orders: bool = True, neutral: float = 5.0) -> Game:
    """Place in a knock-out with a second chance: 1 for the champion, 0 for the last, evenly between. 2G-2 pairs.

    Pairs are drawn by chance, and the odd one goes on without a match. Who has lost once plays on among those, where
    the losers of each round arrive in turn; the last of either side meet in one final. Of a pair with equal points the
    first goes on. Who has lost twice is placed by the round it came to, in it by the mean of all its points.
    both_orders: each pair is judged both ways round and the points are summed. neutral: what both get where there is no
    verdict, the middle of the judge's scale (that of probabilities is 5).
    """
    points: list[list[float]] = [[] for _ in range(size)]

    def mean(member: int) -> float:
        return sum(points[member]) / len(points[member])

    def round_of(members: list[int], mixed: bool = True) -> Round:
        """Who goes on and who lost."""
        order = [members[k] for k in draw.permutation(len(members))] if mixed else members
        pairs = list(zip(order[::2], order[1::2], strict=False))
        won, lost = (order[-1:] if len(order) % 2 else []), []
        for (i, j), (a, b) in zip(pairs, (yield from meet(pairs, both_orders, neutral)), strict=True):
            points[i].append(a)
            points[j].append(b)
            won.append(i if a >= b else j)
            lost.append(j if a >= b else i)
        return won, lost

    unbeaten, arriving = list(range(size)), []
    while len(unbeaten) > 1:
        unbeaten, lost = yield from round_of(unbeaten)
        arriving.append(lost)
    beaten: list[int] = []
    out: list[list[int]] = []
    while arriving or len(beaten) > 1:
        beaten += arriving.pop(0) if arriving else []
        if len(beaten) > 1:
            beaten, lost = yield from round_of(beaten)
            out.append(sorted(lost, key=lambda member: -mean(member)))
    won, lost = yield from round_of(unbeaten + beaten, mixed=False)
    return by_place([*won, *lost, *(member for lost in reversed(out) for member in lost)])
