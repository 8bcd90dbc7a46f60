from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import vspo as oracle

from coterie.metrics import Collector, collect
from coterie.selection import refill_by_value

SOURCE = [[1, 0, 0, 1], [1, 1, 1, 1], [0.2, 0, 0, 0]]


def table(groups: list[list[float]]) -> tuple[torch.Tensor, ...]:
    rewards = torch.tensor([float(r) for g in groups for r in g], dtype=torch.float64)
    label = torch.tensor([i for i, g in enumerate(groups) for _ in g])
    return rewards, label, torch.ones(len(rewards), 2, dtype=torch.bool), torch.ones_like(rewards)


@pytest.mark.oracle("vspo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("most", [1.2, 2.0, 9.0])
def test_against_the_oracle(kind: str, most: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        live = (n["mask"] & (n["weights"] != 0)[:, None]).any(-1)
        want = oracle.of_rows(n["rewards"], n["groups"], live, most)
        got = refill_by_value(t["rewards"], t["groups"], t["mask"], t["weights"], most=most)
        np.testing.assert_allclose(got.numpy(), want * n["weights"], atol=1e-12)
        wide = refill_by_value(
            t["rewards"], t["groups"], t["mask"], t["weights"][:, None].expand(t["mask"].shape), most=most
        )
        np.testing.assert_allclose(wide.numpy(), (want * n["weights"])[:, None] + 0 * n["mask"], atol=1e-12)


@pytest.mark.oracle("vspo")
def test_numbers_of_the_source() -> None:
    np.testing.assert_allclose(oracle.values(SOURCE), [0.25, 0, 0.0823], atol=1e-4)
    np.testing.assert_allclose(oracle.shares(SOURCE), [0.7524, 0, 0.2476], atol=1e-4)
    with collect(seen := Collector()):
        got = refill_by_value(*table(SOURCE), most=9.0)
    np.testing.assert_allclose(got[::4], [1.7524 * 2 / 3, 0, 1.2476 * 2 / 3], atol=1e-4)
    assert seen.means()["weights/refilled_share"] == pytest.approx(1 / 3)


@pytest.mark.reduction("vspo")
@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_where_all_groups_differ_it_is_plain_and_the_mean_weight_is_one(drawn: list[list[int]]) -> None:
    groups = [[r / 4 for r in g] for g in drawn]
    got = refill_by_value(*table(groups))
    differ = [len(set(g)) > 1 for g in groups]
    if all(differ):
        assert torch.equal(got, torch.ones_like(got))
    assert got[::3].sum().item() == pytest.approx(sum(differ))
    assert [bool(w) for w in got[::3]] == differ


def test_harder_prompts_of_equal_spread_weigh_more_and_the_limit_holds() -> None:
    groups = [[1, 1, 1, 0], [0, 0, 0, 1], *[[0, 0, 0, 0]] * 4]
    easy, hard = refill_by_value(*table(groups), most=9.0)[[0, 4]].tolist()
    assert hard == pytest.approx(2 * 4 / 6) and easy == pytest.approx(2 * 2 / 6)
    easy, hard = refill_by_value(*table(groups), most=2.0)[[0, 4]].tolist()
    assert easy == hard == 1.0
