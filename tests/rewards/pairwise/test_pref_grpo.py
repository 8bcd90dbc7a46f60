"""Win rates and the advantages that are made of them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from games import hold, noisy, scores, strict
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.arena_rl import both_ways
from oracles.pref_grpo import advantages as advantages_oracle
from oracles.pref_grpo import win_rates as oracle

from coterie.credit import clip_advantage, group_norm
from coterie.metrics import Collector, collect
from coterie.recipe import resolve


def credit(rates: Any) -> torch.Tensor:
    """The advantages of one group, by the pieces and settings of the method."""
    recipe = resolve(method="pref-grpo", values={"task": "sort"})
    rewards = torch.tensor(rates, dtype=torch.float64)
    table: dict[str, Any] = {"rewards": rewards, "groups": torch.zeros(len(rewards), dtype=torch.long)}
    table["mask"] = torch.ones(len(rewards), 2, dtype=torch.bool)
    table["advantages"] = recipe.single["credit.baseline"](table)
    (clip,) = recipe.chain["credit.modifiers"]
    return clip(table)


def near(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("pref-grpo")
@pytest.mark.parametrize("size", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("both", [False, True])
def test_against_the_oracle(size: int, both: bool) -> None:
    for seed in range(6):
        judge = noisy(seed, levels=3)  # many ties, and its opinion depends on the order of showing
        got = hold("win_rate", judge, size, both_orders=both)
        want = oracle(both_ways(judge) if both else judge, size)
        near(got, want)
        near(credit(got), advantages_oracle(want), 1e-9)


@pytest.mark.oracle("pref-grpo")
def test_numbers_of_the_source() -> None:
    better = {(0, 1): 1, (0, 2): 1, (0, 3): 0, (1, 2): 1, (1, 3): -1, (2, 3): 1}
    got = hold("win_rate", lambda i, j: (better[i, j], -better[i, j]), 4)
    near(got, [2.5 / 3, 1 / 3, 1 / 3, 0.5])
    near(credit(np.round(got, 3)), [1.4139, -0.7075, -0.7075, 0.0011], 1e-4)  # rounded as in the authors' code
    near(credit(got), [2**0.5, -(0.5**0.5), -(0.5**0.5), 0.0], 1e-7)


@pytest.mark.oracle("pref-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("bound", [5.0, 0.3, 0.0])
def test_the_clip_against_numpy(kind: str, bound: float) -> None:
    n = inputs.table(kind)
    n["advantages"] *= 9
    t = inputs.tensors(n)
    near(clip_advantage(t["advantages"], t["mask"], bound=bound), np.clip(n["advantages"], -bound, bound))
    wide = t["advantages"].unsqueeze(-1).expand(t["mask"].shape)
    near(clip_advantage(wide, t["mask"], bound=bound), np.clip(wide.numpy(), -bound, bound))


def test_all_undecided_is_worth_nothing() -> None:
    rates = hold("win_rate", lambda i, j: (3.0, 3.0), 6)
    assert rates == [0.5] * 6
    assert (credit(rates) == 0).all()


def test_without_a_verdict_a_pair_is_half_a_win() -> None:
    assert hold("win_rate", lambda i, j: None if j == 3 else (1.0, 0.0), 4) == pytest.approx(
        [2.5 / 3, 1.5 / 3, 0.5 / 3, 0.5]
    )
    assert np.isnan(hold("win_rate", lambda i, j: None, 4)).all()
    one_way = hold("win_rate", lambda i, j: (0.0, 1.0) if i < j else None, 3, both_orders=True)
    assert one_way == [0.0, 0.5, 1.0], "of two orders the one with a verdict counts"


def test_one_alone_and_two() -> None:
    assert hold("win_rate", strict([1.0]), 1) == [0.0]
    assert hold("win_rate", strict([1.0, 2.0]), 2) == [0.0, 1.0]


@pytest.mark.parametrize("both", [False, True])
def test_every_pair_is_shown_once_a_way(both: bool) -> None:
    shown: list[tuple[int, int]] = []
    hold("win_rate", lambda i, j: (shown.append((i, j)), (1.0, 0.0))[1], 5, both_orders=both)
    pairs = list(combinations(range(5), 2))
    assert shown == [*pairs, *((j, i) for i, j in pairs)] if both else shown == pairs


@pytest.mark.reduction("pref-grpo")
@given(scores())
def test_of_an_order_only_ranks_are_left(values: list[float]) -> None:
    """A judge that follows a strict score: the rate is rank / (G - 1), whatever the distances."""
    n = len(values)
    ranks = [sum(other < v for other in values) for v in values]
    near(hold("win_rate", strict(values), n), [r / (n - 1) for r in ranks])
    near(hold("win_rate", strict(np.exp(values)), n), hold("win_rate", strict(values), n), 0)
    whole = group_norm(torch.tensor(ranks, dtype=torch.float64), torch.zeros(n, dtype=torch.long), eps=1e-8 * (n - 1))
    near(credit(hold("win_rate", strict(values), n)), whole, 1e-9)


@pytest.mark.reduction("pref-grpo")
@given(st.integers(2, 9), st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_rates_sum_to_half_the_group_and_follow_their_rollouts(n: int, seed: int, random: Any) -> None:
    judge = noisy(seed, levels=3)
    got = hold("win_rate", judge, n, both_orders=True)
    assert sum(got) == pytest.approx(n / 2)
    order = random.sample(range(n), n)
    moved = hold("win_rate", lambda i, j: judge(order[i], order[j]), n, both_orders=True)
    near(moved, [got[k] for k in order])


@pytest.mark.reduction("pref-grpo")
@given(st.integers(0, 10_000))
def test_within_the_bound_the_clip_does_nothing(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    assert torch.equal(clip_advantage(t["advantages"], t["mask"], bound=100.0), t["advantages"])


def test_the_share_of_clipped_advantages_is_recorded() -> None:
    collector = Collector()
    mask = torch.tensor([[True, False], [True, True]])
    with collect(collector):
        clip_advantage(torch.tensor([[9.0, 9.0], [1.0, -7.0]]), mask)
    assert collector.means() == {"credit/clipped_share": pytest.approx(2 / 3)}
