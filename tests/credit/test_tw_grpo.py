from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.tw_grpo import spreads, weights

from coterie.credit import spread_weights
from coterie.policies.groupwise import position_spread


@pytest.mark.oracle("tw-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_weights_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        for alpha in (1.7, 0.4):
            want = np.array(weights(n["spread"], n["groups"], n["mask"], alpha)).reshape(n["mask"].shape)
            wide = t["logp"]
            for a in (t["rewards"], wide):
                got = spread_weights(a, t["spread"], t["groups"], t["mask"], alpha=alpha)
                column = a.numpy()[:, None] if a.dim() == 1 else a.numpy()
                np.testing.assert_allclose(got.numpy(), want * column, rtol=1e-9, atol=1e-12)


def head(hidden: torch.Tensor) -> torch.Tensor:
    """States that are logits already."""
    return hidden


@pytest.mark.oracle("tw-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_spreads_against_the_oracle(kind: str, chunk: int) -> None:
    n = inputs.table(kind)
    mask, draw = n["mask"], np.random.default_rng(0)
    logits = draw.standard_normal((*mask.shape, 5)) * draw.choice([1.0, 9.0], (*mask.shape, 1))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    t = inputs.tensors(n)
    got = position_spread(torch.from_numpy(logits)[t["mask"]], head, t["groups"], t["mask"], chunk)
    want = np.array(spreads(logp, n["groups"], mask)).reshape(mask.shape)[mask]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("tw-grpo")
def test_numbers_of_the_source() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]], dtype=torch.float64)
    groups, mask = torch.zeros(2, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool)
    spread = position_spread(probs.log()[mask], head, groups, mask, 10).view(2, 2)
    got = spread_weights(torch.ones(2, dtype=torch.float64), spread, groups, mask)
    np.testing.assert_allclose(got.numpy(), [[1.7, 1.0], [1.7, 1.0]], rtol=1e-12)


rows = st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 2), st.floats(0, 5)), min_size=1, max_size=9)


def table(drawn: list[tuple[float, int, float]]) -> tuple[Any, ...]:
    a = torch.tensor([row[0] for row in drawn], dtype=torch.float64)
    spread = torch.tensor([[row[2], 1.0] for row in drawn], dtype=torch.float64)
    return a, spread, torch.tensor([row[1] for row in drawn]), torch.ones(len(drawn), 2, dtype=torch.bool)


@pytest.mark.reduction("tw-grpo")
@given(rows)
def test_with_alpha_1_or_no_difference_it_changes_nothing(drawn: list[tuple[float, int, float]]) -> None:
    a, spread, groups, mask = table(drawn)
    want = a.unsqueeze(-1).expand(-1, 2)
    assert torch.equal(spread_weights(a, spread, groups, mask, alpha=1.0), want)
    assert torch.equal(spread_weights(a, torch.full_like(spread, 3.0), groups, mask), want)


@pytest.mark.reduction("tw-grpo")
@given(rows)
def test_weights_are_between_1_and_alpha_and_reach_both(drawn: list[tuple[float, int, float]]) -> None:
    _, spread, groups, mask = table(drawn)
    w = spread_weights(torch.ones(len(drawn), dtype=torch.float64), spread, groups, mask, alpha=3.0)
    for group in groups.unique():
        own, of = w[groups == group], spread[groups == group]
        assert float(own.min()) == 1.0
        assert float(own.max()) == pytest.approx(3.0 if of.max() > of.min() else 1.0)


def test_equal_distributions_do_not_differ() -> None:
    logits = torch.randn(3, generator=torch.Generator().manual_seed(0)).expand(4, 2, 3)
    mask = torch.ones(4, 2, dtype=torch.bool)
    got = position_spread(logits[mask], head, torch.tensor([0, 0, 1, 1]), mask, 3)
    torch.testing.assert_close(got, torch.zeros(8), rtol=0, atol=1e-6)
