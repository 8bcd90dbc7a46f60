"""One group under a scheme, and judges of its members by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from coterie import registry
from coterie.rewards.pairwise.play import play

Judge = Callable[[int, int], tuple[float, float] | None]


def hold(scheme: str, judge: Judge, size: int, *, draw: Any = 0, **settings: Any) -> list[float]:
    """The rewards of one group. draw: what a scheme draws from, or a seed."""
    source = np.random.default_rng(draw) if isinstance(draw, int) else draw
    game = registry.get("scheme", scheme).bind(settings)({"size": size, "draw": source}, 0)
    (out,) = play([game], lambda asked: [judge(i, j) for _, i, j in asked])
    return out


def strict(values: Sequence[float]) -> Judge:
    """Gives each its own score."""
    return lambda i, j: (float(values[i]), float(values[j]))


def noisy(seed: int, levels: int = 11) -> Judge:
    """Whole scores by chance for each order of showing, the same when asked again."""
    return lambda i, j: tuple(np.random.default_rng([seed, i, j]).integers(0, levels, 2).astype(float).tolist())  # type: ignore[return-value]


def scores(least: int = 2, most: int = 17) -> Any:
    """Different scores, one a member."""
    return st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=least, max_size=most, unique=True)


class Scripted:
    """A generator whose permutations are known."""

    def __init__(self, seed: int) -> None:
        self.rng, self.given = np.random.default_rng(seed), list[list[int]]()

    def permutation(self, n: int) -> np.ndarray:
        out = self.rng.permutation(n)
        self.given.append(out.tolist())
        return out
