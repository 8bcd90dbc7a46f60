from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.prs import staged as oracle

from coterie.credit import group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import staged


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.oracle("prs")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        stages = np.random.default_rng(seed).integers(0, 3, len(n["rewards"])).astype(float)
        if seed == 3:
            stages[::4] = np.nan
        for settings in ({}, {"parsed": 0.3, "formed": 0.5}):
            want = oracle(stages.tolist(), n["rewards"].tolist(), **settings)
            got = staged(torch.from_numpy(n["rewards"]), {"stage": torch.from_numpy(stages)}, **settings)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


@pytest.mark.oracle("prs")
def test_numbers_of_the_source() -> None:
    got = staged(R(0.9, 0.9, 0, 0.5), {"stage": R(0, 1, 2, 2)})
    np.testing.assert_allclose(got.numpy(), [0, 0.1, 0.2, 0.6], rtol=1e-12)


@pytest.mark.reduction("prs")
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1)), min_size=1, max_size=8))
def test_no_answer_makes_up_for_a_stage(rows: list[tuple[int, float]]) -> None:
    stages, quality = (R(*map(float, column)) for column in zip(*rows, strict=True))
    got = staged(quality, {"stage": stages})
    for low, high in ((0, 1), (1, 2)):
        below, above = got[stages <= low], got[stages >= high]
        assert not len(below) or not len(above) or below.max() < above.min()


@pytest.mark.reduction("prs")
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_once_all_have_passed_the_advantage_is_that_of_the_answer(quality: list[float]) -> None:
    q, groups = R(*quality), torch.zeros(len(quality), dtype=torch.long)
    got = staged(q, {"stage": torch.full_like(q, 2)})
    torch.testing.assert_close(group_norm(got, groups, scale="none"), 0.8 * group_norm(q, groups, scale="none"))
    assert torch.equal(staged(q, {"stage": torch.full_like(q, 2)}, formed=0.0), q)


def test_what_is_missing_and_what_it_records() -> None:
    with pytest.raises(RewardError, match="'stage', which no reward function gives"):
        staged(R(1), {"quality": R(1)})
    with collect(seen := Collector()):
        assert staged(R(0.5, 0.5, 0.5), {"stage": R(math.nan, 1, 0)}).tolist() == [0.5, 0.1, 0]
    assert seen.means() == {"prs/parsed_share": 0.5, "prs/formed_share": 0.0}
