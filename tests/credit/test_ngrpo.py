from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.ngrpo import keep_unless_all_correct
from oracles.ngrpo import virtual_max_norm as oracle

from coterie.credit import group_norm, virtual_max_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.selection import dynamic_sampling


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


def one_group(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.long)


@pytest.mark.oracle("ngrpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    every: list[dict[str, Any]] = [
        {}, {"scale": "none"}, {"count": 3, "ddof": 0}, {"reward_max": 4.0, "eps": 0.01}, {"count": 0},
    ]  # fmt: skip
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["rewards"] = n["rewards"].astype(np.float32)
        t = inputs.tensors(n)
        for settings in every:
            want = oracle(n["rewards"], n["groups"], **settings)
            near(virtual_max_norm(t["rewards"].to(dtype), t["groups"], **settings), want, tolerance)


@pytest.mark.oracle("ngrpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_only_groups_all_correct_are_dropped(kind: str) -> None:
    for seed in range(5):
        n = inputs.table(kind, seed)
        n["correct"] |= n["groups"] == n["groups"][0]  # one group is all correct
        t = inputs.tensors(n)
        for metric in ("auto", "correct"):
            got = dynamic_sampling(t["rewards"], t["groups"], t["correct"], metric=metric, drop="all_correct")
            assert got.tolist() == keep_unless_all_correct(n["correct"], n["groups"])


@pytest.mark.oracle("ngrpo")
def test_numbers_of_the_source() -> None:
    near(virtual_max_norm(R(1, 0, 0, 0), one_group(4)), [1.095443, -0.730295, -0.730295, -0.730295], 1e-6)
    near(virtual_max_norm(R(0, 0, 0, 0), one_group(4)), [-0.447213] * 4, 1e-6)


@pytest.mark.parametrize("n", [1, 2, 8, 31])
def test_all_wrong_is_pushed_down_and_all_correct_left_alone(n: int) -> None:
    near(virtual_max_norm(torch.zeros(n, dtype=torch.float64), one_group(n), eps=0.0), [-1 / (n + 1) ** 0.5] * n)
    assert (group_norm(torch.zeros(n), one_group(n)) == 0).all()
    for dtype in (torch.float32, torch.float64):
        best = torch.full((n,), 0.1, dtype=dtype)
        assert (virtual_max_norm(best, one_group(n), reward_max=0.1, eps=1e-12) == 0).all()


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        virtual_max_norm(R(0, 0, 1, 1, 0, 1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert seen.means() == {"credit/revived_share": pytest.approx(1 / 3)}


def test_dropping_all_correct_needs_the_verdict() -> None:
    verdict = torch.tensor([True, False])
    for correct, metric in ((None, "auto"), (verdict, "rewards")):
        with pytest.raises(RewardError, match="drop=all_correct reads the verifier's verdict"):
            dynamic_sampling(torch.zeros(2), one_group(2), correct, metric=metric, drop="all_correct")


rewards_and_groups = st.lists(
    st.tuples(st.floats(-3, 1, allow_subnormal=False), st.integers(-2, 3)), min_size=1, max_size=14
).map(lambda rows: (R(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])))


@pytest.mark.reduction("ngrpo")
@given(rewards_and_groups)
def test_without_virtual_rollouts_it_is_grpo(both: Any) -> None:
    for scale in ("std", "none"):
        near(virtual_max_norm(*both, count=0, scale=scale), group_norm(*both, scale=scale, eps=1e-6), 1e-9)


@pytest.mark.reduction("ngrpo")
@given(rewards_and_groups, st.integers(1, 3))
def test_it_is_grpo_on_the_group_with_its_virtual_rollouts(both: Any, count: int) -> None:
    rewards, groups = both
    labels = groups.unique().repeat(count)
    extended = torch.cat([rewards, torch.ones(len(labels), dtype=torch.float64)]), torch.cat([groups, labels])
    want = group_norm(*extended, eps=1e-6)
    near(virtual_max_norm(rewards, groups, count=count), want[: len(rewards)], 1e-9)
    assert float(virtual_max_norm(rewards, groups, count=count, scale="none").sum()) <= 1e-12
