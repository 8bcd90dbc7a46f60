"""Signs against a rollout of the group, and the filter of lopsided groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import hold, noisy, scores, strict
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.arena_rl import both_ways
from oracles.brpo import kept as kept_oracle
from oracles.brpo import signs as oracle

from coterie.api import resume, start
from coterie.credit import raw_reward
from coterie.recipe import resolve
from coterie.selection import lopsided
from tests.e2e.conftest import TINY

JUDGE = f"rewards.pairwise.judge={Path(__file__).parents[3] / 'examples/pairwise_judge.py'}:closer"


class Chosen:
    """A generator that draws what it is told."""

    def __init__(self, reference: int) -> None:
        self.reference = reference

    def integers(self, n: int) -> int:
        return self.reference


@pytest.mark.oracle("brpo")
@pytest.mark.parametrize("size", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("both", [False, True])
def test_against_the_oracle(size: int, both: bool) -> None:
    for seed in range(6):
        judge, reference = noisy(seed, levels=3), seed % size
        points = both_ways(judge) if both else judge
        met = [points(i, reference) for i in range(size)]
        got = hold("bootstrapped", judge, size, draw=Chosen(reference), both_orders=both)
        assert got == oracle([a for a, _ in met], [b for _, b in met], reference)


@pytest.mark.oracle("brpo")
def test_numbers_of_the_source() -> None:
    of_each, of_reference = [7.0, 5.0, 6.0, 8.0], [6.0, 5.0, 7.0, 6.0]
    got = hold("bootstrapped", lambda i, j: (of_each[i], of_reference[i]), 4, draw=Chosen(1))
    assert got == [1, 0, -1, 1]
    rewards, groups = torch.tensor(got, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    assert (lopsided(rewards, groups) == 1).all()
    assert torch.equal(raw_reward(rewards), rewards)


@pytest.mark.oracle("brpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("most", [0.6, 0.0, 0.3, 1.0])
def test_the_filter_against_the_oracle(kind: str, most: float) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        n["rewards"] = np.sign(n["rewards"] - np.median(n["rewards"]))
        t = inputs.tensors(n)
        want = kept_oracle(n["rewards"], n["groups"], most)
        assert lopsided(t["rewards"], t["groups"], most=most).tolist() == want
        assert lopsided(t["rewards"].float(), t["groups"], most=most).tolist() == want


def test_a_tie_is_a_loss_and_no_verdict_is_nothing() -> None:
    level = lambda i, j: None if i == 3 else (5.0, 5.0)  # noqa: E731
    assert hold("bootstrapped", level, 5, draw=Chosen(0)) == [0, -1, -1, 0, -1]
    assert np.isnan(hold("bootstrapped", lambda i, j: None, 5)).all()


def test_an_outlier_as_reference_is_filtered_and_a_fair_one_is_not() -> None:
    groups = torch.zeros(16, dtype=torch.long)
    for reference, kept in ((0, False), (2, False), (4, True), (8, True), (12, True), (15, False)):
        rewards = torch.tensor(hold("bootstrapped", strict(range(16)), 16, draw=Chosen(reference)))
        assert bool((lopsided(rewards, groups) == 1).all()) == kept, reference
        assert bool((lopsided(rewards, groups, most=1.0) == 1).all())


@pytest.mark.reduction("brpo")
@given(scores(), st.integers(0, 100))
def test_it_is_the_sign_of_what_a_score_has_over_the_references(values: list[float], seed: int) -> None:
    """A median reference: A is the sign of score - median."""
    n = len(values)
    got = hold("bootstrapped", strict(values), n, draw=seed)
    reference = got.index(0.0)
    assert got == np.sign(np.asarray(values) - values[reference]).tolist()
    middle = sorted(range(n), key=lambda k: values[k])[n // 2]
    median = hold("bootstrapped", strict(values), n, draw=Chosen(middle))
    assert abs(sum(median)) <= 1, "zero, or one where the number is even"
    assert hold("bootstrapped", strict(np.exp(values)), n, draw=seed) == got


@pytest.mark.reduction("brpo")
@given(st.integers(0, 10_000))
def test_a_filter_that_keeps_all_and_credit_that_changes_nothing(seed: int) -> None:
    t = inputs.tensors(inputs.table("binary", seed))
    assert (lopsided(t["rewards"], t["groups"], most=1.0) == 1).all()
    assert torch.equal(raw_reward(t["rewards"]), t["rewards"])


def test_every_rollout_is_the_reference_now_and_then() -> None:
    drawn = [hold("bootstrapped", strict(range(4)), 4, draw=seed).index(0.0) for seed in range(400)]
    assert min(np.bincount(drawn, minlength=4)) > 70


def rows(run: Any) -> list[dict[str, Any]]:
    clock = ("time/", "system/", "tokens/per_second")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in run.metrics]


def test_references_are_the_same_after_a_stop(tmp_path: Path) -> None:
    """The reference of a group is drawn by its step and place: a resumed run draws what a whole one drew."""
    recipe = [*TINY, JUDGE, "rollout.group_size=6", "checkpoint.every=2", "log.rollouts_every=0"]
    whole = start(resolve(method="brpo", overrides=[*recipe, "steps=4"]), tmp_path / "whole", quiet=True)
    start(resolve(method="brpo", overrides=recipe), tmp_path / "half", quiet=True)
    half = resume(tmp_path / "half", steps=4, quiet=True)
    assert rows(half)[3:] == rows(whole)[3:] and len(rows(whole)) == 5
    skews = [row["brpo/skew"] for row in rows(whole)[1:]]
    assert len(set(skews)) > 1
