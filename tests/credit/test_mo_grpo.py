"""Multi-objective GRPO: the weighted sum that the loop makes of the components, and GRPO on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.group_norm import group_norm as oracle

from coterie.credit import decoupled_norm, group_norm
from coterie.reductions import combine

PAIR = torch.zeros(2, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weighted(components: Mapping[str, Sequence[float]], weights: Mapping[str, float], rows: int) -> list[float]:
    return [
        math.fsum(weights[k] * float(column[i]) for k, column in components.items() if not math.isnan(column[i]))
        for i in range(rows)
    ]


@pytest.mark.oracle("mo-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        parts = dict(n["components"]) | {"safe": n["rewards"] ** 2}
        if seed == 1:
            parts["safe"][::2] = np.nan
        weights = {"exact": 0.7, "format": 0.3, "safe": -0.2}
        want = oracle(weighted(parts, weights, len(n["groups"])), n["groups"].tolist())
        summed = combine({k: torch.from_numpy(v) for k, v in parts.items()}, weights)
        got = group_norm(summed, torch.from_numpy(n["groups"]))
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.oracle("mo-grpo")
def test_numbers_of_the_source() -> None:
    summed = combine({"safe": R(1, 0), "helpful": R(0, 1)}, {"safe": 0.7, "helpful": 0.3})
    assert summed.tolist() == pytest.approx([0.7, 0.3])
    assert group_norm(summed, PAIR).tolist() == pytest.approx([0.706857, -0.706857], abs=1e-6)


@pytest.mark.reduction("mo-grpo")
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_with_all_weight_on_one_head_it_is_grpo(rows: list[tuple[float, float]]) -> None:
    a, b = (R(*column) for column in zip(*rows, strict=True))
    groups = torch.zeros(len(rows), dtype=torch.long)
    assert torch.equal(group_norm(combine({"a": a, "b": b}, {"a": 1.0, "b": 0.0}), groups), group_norm(a, groups))


@pytest.mark.reduction("mo-grpo", "gdpo")
@given(st.floats(0.1, 1))
def test_equal_sums_are_not_told_apart_and_gdpo_tells_them(rare: float) -> None:
    """Two heads swapped give the same sum; by itself the rarer one weighs more."""
    parts = {"a": R(1, 0, 0, 0, 0), "b": R(0, 1, 1, 0, 0)}
    groups, ones = torch.zeros(5, dtype=torch.long), {"a": 1.0, "b": 1.0}
    summed = group_norm(combine(parts, ones), groups)
    assert summed[0] == summed[1]
    apart = decoupled_norm({k: rare * v for k, v in parts.items()}, ones, groups)
    assert apart[0] > apart[1] > 0
