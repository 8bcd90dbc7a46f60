"""Small controlled experiments: does what a paper claims of its method show in miniature?

Each experiment plays two recipes against each other on the same seeds and reports one figure with the interval of its
paired difference. The policy is a table of softmaxes (bench.claims.tabular), or the tiny language model trained by the
real loop (bench.claims.training); the result says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Figures = dict[str, float]
TUNING_SEEDS = (1000, 1001, 1002)
"""Apart from the seeds that are reported."""


@dataclass(frozen=True)
class Side:
    """One of the two recipes that are compared."""

    label: str
    method: str
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """`figure` is the one the claim is about, `also` others worth seeing; `higher` says which way is better."""

    slug: str
    claim: str
    how: str
    """What is simulated or trained, in one or two sentences."""
    ours: Side
    baseline: Side
    setting: Callable[[Side, int], Figures]
    """Plays a side with a seed."""
    figure: str
    higher: bool = True
    equal: float | None = None
    """Where the claim is that there is no difference: the largest that counts as none."""
    keeps: tuple[str, float] | None = None
    """Another figure that the claim says is kept, and the largest loss of its mean that counts as none."""
    also: Sequence[str] = ()
    seeds: int = 10
    note: str = ""
    rates: Sequence[float] = ()
    """Learning rates that each side may choose from, by the figure on seeds of their own, so that neither side is held
    to the rate that suits the other."""
    rate: str = "optimizer={{sgd: {{lr: {}}}}}"

    def missing(self) -> list[str]:
        """Methods it needs that are not there (yet)."""
        from coterie import methods

        known = set(methods.slugs())
        return sorted({n for side in (self.ours, self.baseline) for n in _names(side.method, known)} - known)

    @property
    def paper(self) -> str | None:
        """The paper of the method whose claim it is: the last of those that are joined."""
        from coterie import methods

        return methods.load(methods.names_in(self.ours.method)[-1]).paper

    def tuned(self, side: Side) -> tuple[Side, float | None]:
        """A side at the learning rate that is best for it on the tuning seeds, and that rate."""
        if not self.rates:
            return side, None
        scores = {}
        for rate in self.rates:
            tried = replace(side, overrides=[*side.overrides, self.rate.format(rate)])
            found = [self.setting(tried, seed)[self.figure] for seed in TUNING_SEEDS]
            scores[rate] = sum(found) / len(found) * (1 if self.higher else -1)
        best = max(scores, key=lambda r: scores[r])
        return replace(side, overrides=[*side.overrides, self.rate.format(best)]), best


def _names(method: str, known: set[str]) -> list[str]:
    """The slugs joined in a method; one that is known may hold plus signs of its own."""
    return [method] if method in known else method.split("+")


def resolved(side: Side, seed: int, base: Sequence[str], **values: Any) -> Any:
    """The recipe of a side: the setting's overrides, then the side's own."""
    from coterie.recipe import resolve

    return resolve(method=side.method, overrides=[*base, *side.overrides], values={"seed": seed, **values})
