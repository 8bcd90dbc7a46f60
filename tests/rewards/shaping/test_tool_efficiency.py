from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.otc import otc as oracle

from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import tool_efficiency

FOUR = torch.zeros(4, dtype=torch.long)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shaped(piece: Any, right: list[int], calls: list[float], prompt: int = 7) -> torch.Tensor:
    groups = torch.zeros(len(right), dtype=torch.long)
    return piece(R(*map(float, right)), groups, torch.tensor(right).bool(), {"tool_calls": R(*calls)}, groups + prompt)


@pytest.mark.oracle("otc")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"remember": False}, {"alpha": 0.5, "smooth": 4.0}])
def test_three_steps_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    piece, best = tool_efficiency(**settings), {} if settings.get("remember", True) else None
    for seed in range(3):
        n = inputs.table(kind, seed)
        rng = np.random.default_rng([seed, 9])
        calls = rng.integers(0 if seed else 1, 5, len(n["rewards"])).astype(float)
        prompts = n["groups"] % 3 - (seed == 2)
        if seed == 1:
            calls[::5] = np.nan
        rest = {"c": settings.get("smooth", 1.0), "alpha": settings.get("alpha", 1.0)}
        want = oracle(n["rewards"], n["groups"], n["correct"], calls.tolist(), prompts.tolist(), best, **rest)
        t = inputs.tensors(n)
        parts = {"tool_calls": torch.from_numpy(calls)}
        got = piece(t["rewards"], t["groups"], t["correct"], parts, torch.from_numpy(prompts))
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)
    if best is not None:
        assert dict(zip(piece.prompts.tolist(), piece.fewest.tolist(), strict=True)) == best


@pytest.mark.oracle("otc")
def test_numbers_of_the_source() -> None:
    got = shaped(tool_efficiency(), [1, 1, 0, 1], [2, 4, 1, 3])
    np.testing.assert_allclose(got.numpy(), [1, 0.866, 0, 0.9511], atol=5e-5)
    np.testing.assert_allclose(shaped(tool_efficiency(), [1, 1], [0, 2]).numpy(), [1, 0.309], atol=5e-5)


def test_the_record_of_a_prompt_lasts_and_is_saved() -> None:
    piece = tool_efficiency()
    assert shaped(piece, [1, 1], [2, 2]).tolist() == [1, 1]
    assert shaped(piece, [1, 0], [1, 0]).tolist() == [1, 0]
    later = shaped(piece, [1, 1], [3, 3])
    assert later.tolist() == pytest.approx([math.sin(0.75 * math.pi)] * 2)
    assert shaped(piece, [1, 1], [3, 3], prompt=8).tolist() == [1, 1]
    again = tool_efficiency()
    again.load_state_dict(piece.state_dict())
    assert torch.equal(shaped(again, [1, 1], [3, 3]), later)
    assert shaped(tool_efficiency(remember=False), [1, 1], [3, 3]).tolist() == [1, 1]


def test_nobody_right_prompts_without_an_index_and_counts_that_are_missing() -> None:
    piece = tool_efficiency(alpha=2.0)
    groups, wrong = torch.zeros(2, dtype=torch.long), torch.tensor([False, False])
    assert piece(R(0.3, -1), groups, wrong, {"tool_calls": R(5, 0)}, groups).tolist() == [0.6, -2]
    assert len(piece.prompts) == 0
    shaped(piece, [1, 1], [1, 1], prompt=-1)
    assert len(piece.prompts) == 0
    assert shaped(piece, [1, 1], [math.nan, 3]).tolist() == [2, 2]
    with pytest.raises(RewardError, match="'calls', which no reward function gives"):
        tool_efficiency(calls="calls")(R(1, 1), groups, wrong, {"tool_calls": R(1, 1)}, groups)


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        shaped(tool_efficiency(), [1, 1, 0, 1], [2, 2, 5, math.nan])
    assert seen.means() == {"otc/calls": 3.0, "otc/fewest": 2.0, "otc/efficiency": 1.0}


@pytest.mark.reduction("otc")
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 6))
def test_equal_numbers_of_calls_are_grpo_on_the_verdict(right: list[bool], calls: int) -> None:
    got = shaped(tool_efficiency(), [int(r) for r in right], [calls] * len(right))
    torch.testing.assert_close(got, R(*map(float, right)))


@pytest.mark.reduction("otc")
@given(st.integers(0, 5), st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True))
def test_every_further_call_costs(fewest: int, more: list[int]) -> None:
    calls = [fewest, *(fewest + k for k in sorted(more))]
    got = shaped(tool_efficiency(), [1] * len(calls), calls)
    assert got[0] == 1 and (got.diff() < 0).all() and (got > 0).all()
