"""ArenaRL (arXiv:2601.06487): tournaments over one group. `points(i, j)` is what i and j get in their pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

Points = Callable[[int, int], tuple[float, float]]


def both_ways(judge: Points) -> Points:
    """Each pair is shown in both orders, and what a rollout gets is summed."""
    return lambda i, j: (judge(i, j)[0] + judge(j, i)[1], judge(i, j)[1] + judge(j, i)[0])


def fold(seeds: list[int]) -> list[int]:
    """A standard bracket: the best with the worst, then the best of these pairs with the worst, and so on."""
    boxes = [[seed] for seed in seeds]
    while len(boxes) > 1:
        boxes = [boxes[k] + boxes[-1 - k] for k in range(len(boxes) // 2)]
    return boxes[0]


def average(values: Sequence[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction(0)) / len(values)


def seeds_of(points: Points, n: int) -> list[float]:
    against = [points(k, 0) for k in range(1, n)]
    return [float(average([theirs for _, theirs in against])), *(mine for mine, _ in against)]


def single_elimination(points: Points, n: int) -> list[float]:
    scores = {k: [s] for k, s in enumerate(seeds_of(points, n))}
    by_seed = sorted(range(n), key=lambda k: (-scores[k][0], k))
    places = 2 ** math.ceil(math.log2(n))
    standing: list[int] = [by_seed[p] for p in fold(list(range(places))) if p < n]
    order: list[int] = []  # from the last place up
    while len(standing) > 1:
        spare = standing.pop() if len(standing) % 2 == 1 else None
        losers, winners = [], []
        while standing:
            left, right = standing.pop(0), standing.pop(0)
            a, b = points(left, right)
            scores[left] += [a]
            scores[right] += [b]
            (winners, losers)[b > a].append(left)
            (losers, winners)[b > a].append(right)
        standing = winners if spare is None else [spare, *winners]
        best_first = sorted(range(len(losers)), key=lambda k: (-average(scores[losers[k]]), k))
        order += [losers[k] for k in reversed(best_first)]
    order += standing
    return [order.index(k) / (n - 1) for k in range(n)]


def ranked(values: Sequence[float]) -> list[float]:
    """(maxrank - rank) / (maxrank - 1) with equal values at the better rank; 0 where all are equal."""
    distinct = sorted(values, reverse=True)
    ranks = [distinct.index(v) + 1 for v in values]
    worst = max(ranks)
    return [(worst - r) / (worst - 1) if worst > 1 else 0.0 for r in ranks]


def round_robin(points: Points, n: int) -> list[float]:
    wins = [0.0] * n
    for j in range(n):
        for i in range(j):
            a, b = points(i, j)
            wins[i] += (a > b) + (a == b) / 2
            wins[j] += (b > a) + (a == b) / 2
    return ranked(wins)


def anchor(points: Points, n: int) -> list[float]:
    return ranked(seeds_of(points, n))


def swiss(points: Points, n: int, orders: Sequence[Sequence[int]]) -> list[float]:
    """`orders`: the order by chance at the start of each round."""
    wins = {k: 0.0 for k in range(n)}
    opponents: dict[int, list[int]] = {k: [] for k in range(n)}
    for order in orders:
        queue = sorted(order, key=lambda k: -wins[k])
        bye = queue.pop() if n % 2 else None
        results = []
        while queue:
            a = queue[0]
            new = [b for b in queue[1:] if b not in opponents[a]] or queue[1:]
            b = new[0]
            queue = [k for k in queue if k not in (a, b)]
            results.append((a, b))
        for a, b in results:
            x, y = points(a, b)
            wins[a] += 1 if x > y else 0.5 if x == y else 0
            wins[b] += 1 if y > x else 0.5 if x == y else 0
            opponents[a].append(b)
            opponents[b].append(a)
        if bye is not None:
            wins[bye] += 1
    keys = [(wins[k], sum(wins[o] for o in opponents[k])) for k in range(n)]
    table = sorted(range(n), key=lambda k: keys[k], reverse=True)
    out = []
    for k in range(n):
        shared = [(n - 1 - place) / (n - 1) for place in range(n) if keys[table[place]] == keys[k]]
        out.append(math.fsum(shared) / len(shared))
    return out


def double_elimination(points: Points, n: int, shuffle: Callable[[list[int]], list[int]]) -> list[float]:
    scores: dict[int, list[float]] = {k: [] for k in range(n)}

    def match(a: int, b: int) -> tuple[int, int]:
        x, y = points(a, b)
        scores[a].append(x)
        scores[b].append(y)
        return (b, a) if y > x else (a, b)

    def matches(players: list[int]) -> tuple[list[int], list[int]]:
        mixed = shuffle(players)
        results = [match(mixed[k], mixed[k + 1]) for k in range(0, len(mixed) - 1, 2)]
        left = [mixed[-1]] if len(mixed) % 2 else []
        return left + [w for w, _ in results], [loser for _, loser in results]

    upper, drops = list(range(n)), []
    while len(upper) > 1:
        upper, fallen = matches(upper)
        drops.append(fallen)
    lower: list[int] = []
    gone: list[list[int]] = []
    for fallen in drops:
        lower = lower + fallen
        if len(lower) > 1:
            lower, lost = matches(lower)
            gone.append(lost)
    while len(lower) > 1:
        lower, lost = matches(lower)
        gone.append(lost)
    table = list(match(upper[0], lower[0]))
    for lost in gone[::-1]:
        table += sorted(lost, key=lambda k: (-average(scores[k]), lost.index(k)))
    return [1 - table.index(k) / (n - 1) for k in range(n)]


def advantages(rewards: Sequence[float], eps: float = 1e-6) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + eps) for r in rewards]
