from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.red_drop import balanced_norm as oracle

from coterie.credit import balanced_norm, group_norm
from coterie.metrics import Collector, collect
from coterie.streams import stream


def order(step: int, count: int, seed: int = 0) -> np.ndarray:
    """The draw of a step: its stream is part of what resumes."""
    generator = torch.Generator().manual_seed(stream(seed, "balanced-norm", step))
    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


@pytest.mark.oracle("red-drop")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    for step in range(4):
        n = inputs.table(kind, step)
        n["rewards"] = n["rewards"].astype(np.float32)  # the same numbers in both precisions
        t = inputs.tensors(n)
        want, stays = oracle(n["rewards"], n["groups"], order(step, len(n["rewards"])))
        with collect(seen := Collector(), torch.ones_like(t["mask"])):
            got = balanced_norm(t["rewards"].to(dtype), t["groups"], step)
        np.testing.assert_allclose(got.double().numpy(), want, rtol=tolerance, atol=tolerance)
        assert seen.means()["advantage/dropped_share"] == pytest.approx(1 - stays.mean())


@pytest.mark.oracle("red-drop")
def test_numbers_of_the_source() -> None:
    want, stays = oracle([1, 0, 0, 0], [0, 0, 0, 0], [3, 2, 1, 0])
    assert stays.tolist() == [True, True, False, False] and want.tolist() == [0.5, -0.5, 0, 0]
    got = balanced_norm(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long), 0)
    assert got[0] == 0.5 and sorted(got.tolist()) == [-0.5, 0, 0, 0.5]


def test_every_bad_rollout_has_its_turn() -> None:
    rewards, groups = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long)
    kept = torch.stack([balanced_norm(rewards, groups, step) != 0 for step in range(300)]).double().mean(0)
    assert kept[0] == 1 and ((kept[1:] - 1 / 3).abs() < 0.1).all()
    other = torch.stack([balanced_norm(rewards, groups, step, seed=1) != 0 for step in range(300)]).double().mean(0)
    assert not torch.equal(kept, other)


@pytest.mark.reduction("red-drop")
@given(st.integers(0, 10_000))
def test_where_the_good_are_not_outnumbered_it_is_the_groups_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bad = rng.integers(0, 5, 6)
    good = bad + rng.integers(0, 3, 6)
    g = torch.from_numpy(np.concatenate([np.repeat(np.arange(6), bad), np.repeat(np.arange(6), good)]))
    r = torch.from_numpy(np.repeat([0.0, 1.0], [bad.sum(), good.sum()]))
    torch.testing.assert_close(balanced_norm(r, g, seed), group_norm(r, g, scale="none"))


@pytest.mark.reduction("red-drop")
@given(st.integers(0, 10_000))
def test_the_sum_of_a_group_is_nothing_and_bad_ones_do_not_outnumber_good_ones(seed: int) -> None:
    t = inputs.tensors(inputs.table("binary", seed))
    a = balanced_norm(t["rewards"], t["groups"], seed)
    for g in t["groups"].unique():
        own = a[t["groups"] == g]
        assert abs(float(own.sum())) < 1e-12 and int((own < 0).sum()) <= int((own > 0).sum())
