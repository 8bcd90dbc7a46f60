from __future__ import annotations

import math
from pathlib import Path
from statistics import pvariance

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.d3s import best_variance

from coterie.api import start
from coterie.credit import group_norm
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from coterie.selection import max_variance, top_decisions
from tests.e2e.conftest import TINY


@pytest.mark.oracle("d3s")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_no_subset_varies_more(kind: str, share: float) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        got = max_variance(t["advantages"], t["mask"], t["weights"], share=share)
        live = [i for i in range(len(got)) if n["mask"][i].any() and n["weights"][i] != 0]
        count = math.ceil(share * len(live) - 1e-9)
        kept = got.nonzero().squeeze(-1).tolist()
        assert len(kept) == count and set(kept) <= set(live)
        assert torch.equal(got[kept], t["weights"][kept])
        if count:
            best = best_variance(n["advantages"][live], count)
            assert pvariance(n["advantages"][kept].tolist()) == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.oracle("d3s")
def test_numbers_of_the_source() -> None:
    rewards = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0], dtype=torch.float64)
    a = group_norm(rewards, torch.arange(8) // 4, eps=0.0)
    mask, ones = torch.ones(8, 1, dtype=torch.bool), torch.ones(8, dtype=torch.float64)
    assert a.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5])
    with collect(seen := Collector()):
        weights = max_variance(a, mask, ones, share=0.5)
    assert weights.nonzero().squeeze(-1).tolist() == [0, 1, 6, 7]
    assert seen.means() == {"weights/rollout_share": 0.5, "weights/advantage_variance": pytest.approx(1.25)}
    kept = top_decisions(torch.ones_like(mask).double(), a, mask, weights, share=0.5, by="signal", scope="batch")
    assert kept.nonzero()[:, 0].tolist() == [0, 7]


def test_an_advantage_a_decision_counts_by_its_mean() -> None:
    a = torch.tensor([[1.0, -1.0], [2.0, 0.0], [-3.0, torch.nan]], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]]) > 0
    weights = torch.ones(3, 2, dtype=torch.float64)
    assert max_variance(a, mask, weights, share=0.6).tolist() == [[0, 0], [1, 1], [1, 1]]


@pytest.mark.reduction("d3s")
@given(st.integers(0, 10_000))
def test_everything_kept_is_grpo(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    weights = max_variance(t["advantages"], t["mask"], t["weights"], share=1.0)
    assert torch.equal(weights, t["weights"])
    kept = top_decisions(t["entropy_old"], t["advantages"], t["mask"], weights, share=1.0, by="signal", scope="batch")
    assert torch.equal(kept, torch.where(t["mask"], t["weights"].unsqueeze(-1), 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_advantages(dtype: torch.dtype) -> None:
    a = torch.tensor([1e6, -1e6, 0.0, 1e-6], dtype=dtype)
    got = max_variance(a, torch.ones(4, 1) > 0, torch.ones(4, dtype=dtype), share=0.5)
    assert got.tolist() == [1, 1, 0, 0] and got.dtype == dtype


def test_the_schedule_moves_both_levels(tmp_path: Path) -> None:
    steps = [f"selection.weights.{p}.share={{from: 0.25, to: 1.0, over: 1}}" for p in ("max_variance", "top_decisions")]
    recipe = resolve(method="d3s", overrides=[*TINY, "task.dense=true", *steps])
    rows = start(recipe, tmp_path / "run", quiet=True).metrics[1:]
    assert [row["weights/rollout_share"] for row in rows] == [0.25, 1.0]
    assert rows[0]["weights/top_share"] < 0.5 and rows[1]["weights/top_share"] == 1.0
