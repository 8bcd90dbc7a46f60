from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.e_grpo import entity_match as oracle

from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import entity_match

NAMES = ("rewards", "groups", "correct", "truncated")


@pytest.mark.oracle("e-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_against_the_oracle(kind: str, alpha: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        found = np.random.default_rng(seed).integers(-1, 4, len(n["rewards"])).astype(float)
        found[::5] = np.nan
        t = inputs.tensors(n)
        got = entity_match(*(t[c] for c in NAMES), {"found": torch.from_numpy(found)}, alpha=alpha)
        want = oracle(*(n[c] for c in NAMES), found, alpha)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("e-grpo")
def test_numbers_of_the_source() -> None:
    correct, groups = torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.long)
    found = {"found": torch.tensor([4.0, 3.0, 1.0, 0.0], dtype=torch.float64)}
    with collect(seen := Collector()):
        got = entity_match(correct.double(), groups, correct, torch.zeros(4, dtype=torch.bool), found)
    np.testing.assert_allclose(got.numpy(), [1, 0.225, 0.075, 0], rtol=1e-12)
    advantages = group_norm(got, groups, ddof=0, eps=0.0)
    np.testing.assert_allclose(advantages.numpy(), [1.6958, -0.2512, -0.6281, -0.8165], atol=1e-4)
    assert seen.means() == {"entity/found_share": pytest.approx(1 / 3)}


@pytest.mark.reduction("e-grpo")
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), min_size=1, max_size=8))
def test_without_alpha_it_is_the_verdict(rows: list[tuple[bool, float]]) -> None:
    correct, n = torch.tensor([c for c, _ in rows]), len(rows)
    found = {"found": torch.tensor([f for _, f in rows], dtype=torch.float64)}
    none, groups = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
    assert torch.equal(entity_match(correct.double(), groups, correct, none, found, alpha=0.0), correct.double())
    assert (entity_match(correct.double(), groups, correct, none, found) <= torch.where(correct, 1.0, 0.3)).all()
