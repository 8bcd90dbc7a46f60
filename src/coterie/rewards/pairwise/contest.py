"""A judge with a scheme, as a recipe names them, and the reward component that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coterie import registry
from coterie.errors import RecipeError
from coterie.pieces import BoundPiece
from coterie.rewards.functions import WeightedReward, read
from coterie.rewards.pairwise.judge import Pairs, Points
from coterie.rewards.pairwise.play import play
from coterie.sections import Settings

MEND = "rewards.pairwise.judge=file.py:name, a function judge(prompts, first, second, **columns)"


@dataclass
class Held:
    """`rewards`: one float a rollout, NaN where the judge had nothing to say of a whole group."""

    rewards: list[float]
    verdicts: Counter[str] = field(default_factory=Counter)
    """first, second: which was better of those shown; tie; and of failures none, error and timeout."""
    errors: list[str] = field(default_factory=list)


@dataclass
class Contest:
    """The pairwise judge of a run, and the scheme by which rollouts of one prompt meet."""

    judge: WeightedReward
    scheme: BoundPiece

    def hold(
        self,
        groups: Sequence[int],
        pairs_of: Callable[[list[int], list[int]], Pairs],
        compare: Callable[[WeightedReward, Pairs], tuple[list[Points | None], Counter[str], list[str]]],
        seed: Callable[[int], int],
    ) -> Held:
        """Play all groups together.

        groups: of each rollout. pairs_of(first, second): what the judge is shown of rollouts by their numbers. compare:
        asks the judge. seed(group): of what a scheme draws by chance.
        """
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        tables = list(members.values())
        held = Held([0.0] * len(groups))

        def ask(asked: list[tuple[int, int, int]]) -> list[Points | None]:
            shown = pairs_of([tables[g][i] for g, i, _ in asked], [tables[g][j] for g, _, j in asked])
            verdicts, outcomes, errors = compare(self.judge, shown)
            held.verdicts.update({kind: outcomes[kind] for kind in ("none", "error", "timeout")})
            held.verdicts.update("first" if v[0] > v[1] else "second" if v[1] > v[0] else "tie" for v in verdicts if v)
            held.errors += errors
            return verdicts

        games = [
            self.scheme({"size": len(rows), "draw": np.random.default_rng(seed(group))}, 0)
            for group, rows in members.items()
        ]
        for rows, rewards in zip(tables, play(games, ask), strict=True):
            for row, reward in zip(rows, rewards, strict=True):
                held.rewards[row] = reward
        return held

    def shown(self, size: int) -> int:
        """How many pairs of a group of that size the judge is shown; no scheme makes it depend on the verdicts."""
        asked: list[tuple[int, int, int]] = []

        def ask(pairs: list[tuple[int, int, int]]) -> list[Points | None]:
            asked.extend(pairs)
            return [(0.0, 0.0)] * len(pairs)

        play([self.scheme({"size": size, "draw": np.random.default_rng(0)}, 0)], ask)
        return len(asked)


def contest_of(written: Any, scheme: BoundPiece | None, settings: Settings) -> Contest | None:
    """The contest of a recipe: its judge as written and its scheme, or None where it names neither.

    A judge is written as reward functions are: a callable, 'file.py:name', 'package.module:name', or a mapping with
    `fn` and any of name, weight, timeout, on_error. It is f(prompts, first, second, **columns) and answers for each
    pair the two scores, or the probability that the first is better, or None: no verdict.
    """
    if written is None and scheme is None:
        return None
    if written is None:
        assert scheme is not None
        raise RecipeError(f"rewards.pairwise.scheme={scheme.piece.slug} has no judge", hint=MEND)
    known = ", ".join(p.slug for p in registry.all_pieces("scheme"))
    if scheme is None:
        raise RecipeError(
            "rewards.pairwise.judge is named, and no scheme of who meets whom",
            hint=f"rewards.pairwise.scheme=NAME, one of {known}; or a method that has one: pref-grpo, arena-rl, brpo",
        )
    fn = written.get("fn") if isinstance(written, Mapping) else written
    if not callable(fn) and not (isinstance(fn, str) and ":" in fn):
        raise RecipeError(f"rewards.pairwise.judge names no function, got {written!r}", hint=MEND)
    judge = replace(read(written, settings.rewards), per_pair=True)
    if judge.on_error == "zero":
        raise RecipeError(
            f"on_error of judge '{judge.name}' is zero, and a pair has no zero",
            hint="{fn: file.py:name, on_error: none}: the scheme says what a pair without a verdict is worth",
        )
    if settings.rollout.group_size < scheme.piece.min_group:
        raise RecipeError(
            f"rewards.pairwise.scheme={scheme.piece.slug} compares the rollouts of one prompt, and "
            f"rollout.group_size is {settings.rollout.group_size}",
            hint="rollout.group_size=8",
        )
    return Contest(judge, scheme)
