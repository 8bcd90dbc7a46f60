from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.ma_rlhf import by_lengths, by_perplexity, macros
from oracles.ma_rlhf import macro_gae as oracle

from coterie.credit import group_norm, macro_gae
from coterie.credit.macro_gae import SIZES
from coterie.metrics import Collector, collect
from coterie.streams import stream

NAMES = ("token_rewards", "mask", "groups", "logp_old", "step")


@pytest.mark.oracle("ma-rlhf")
@pytest.mark.parametrize(
    "settings",
    [{}, {"size": 1}, {"size": 2, "gamma": 0.9}, {"size": 3, "value": "zero", "lam": 0.0}, {"size": 100, "lam": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for dense in (False, True):
        n = inputs.table(kind, 1)
        if dense:
            n["token_rewards"] = np.random.default_rng(0).standard_normal(n["mask"].shape)
        t = inputs.tensors(n)
        t["token_rewards"] = inputs.garbage("token_rewards", t["token_rewards"], t["mask"])
        got = macro_gae(*(t[c] for c in NAMES), **settings)
        np.testing.assert_allclose(got, oracle(*(n[c] for c in NAMES[:3]), **settings), rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("ma-rlhf")
@pytest.mark.parametrize("cut", ["random", "perplexity"])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_other_cuts_against_the_oracle(kind: str, cut: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["token_rewards"] = np.random.default_rng(0).standard_normal(n["mask"].shape)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in ("token_rewards", "logp_old")}
        if cut == "perplexity":
            cuts = [by_perplexity(row[m].tolist()) for row, m in zip(n["logp_old"], n["mask"], strict=True)]
        else:
            draw = torch.Generator().manual_seed(stream(seed, "macro-actions", n["step"]))
            drawn = torch.randint(len(SIZES), n["mask"].shape[::-1], generator=draw).T.tolist()
            cuts = [by_lengths(m.sum(), [SIZES[k] for k in row]) for row, m in zip(drawn, n["mask"], strict=True)]
        got = macro_gae(*(t[c] for c in NAMES), cut=cut, gamma=0.9, seed=seed)
        want = oracle(*(n[c] for c in NAMES[:3]), gamma=0.9, cuts=cuts)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_a_macro_action_ends_where_the_next_decision_is_less_likely() -> None:
    assert by_perplexity([-3.0, -2.0, -2.5, -1.0, -1.0, -0.5]) == [[0, 1], [2, 3, 4], [5]]
    assert by_perplexity([]) == [] and by_lengths(4, [1, 2, 5]) == [[0], [1, 2], [3]]


def one(rewards: list[float], **settings: Any) -> list[float]:
    r = torch.tensor([rewards], dtype=torch.float64)
    return macro_gae(r, torch.ones_like(r) > 0, torch.zeros(1).long(), r, 0, **settings)[0].tolist()


@pytest.mark.oracle("ma-rlhf")
def test_numbers_of_the_source() -> None:
    want = [0.9025, 0.9025, 0.95, 0.95, 1.0]
    with collect(seen := Collector()):
        assert one([0.0, 0, 0, 0, 1], size=2, value="zero") == pytest.approx(want)
    assert seen.means() == {"macro/actions": 3.0}
    assert macros(5, 2) == [[0, 1], [2, 3], [4]] and macros(1, 5) == [[0]]


def test_no_macro_action_is_empty_where_the_size_divides() -> None:
    assert one([0.0, 0, 0, 0, 1], size=4, lam=0.5, value="zero") == pytest.approx([0.5] * 4 + [1.0])
    assert one([2.0, 4.0, 0.0, 1.0], size=2, lam=1.0, value="zero") == pytest.approx([4.0, 4.0, 1.0, 1.0])
    assert one([3.0], value="zero") == [3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    r = torch.tensor([[1e6, torch.nan, -1e6], [0.0, 0.0, 0.0]], dtype=dtype)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]) > 0
    got = macro_gae(r, mask, torch.tensor([0, 1]), r, 0, lam=0.0)
    assert got.isfinite().all() and got.dtype == dtype and not got[~mask].any()


@pytest.mark.reduction("ma-rlhf")
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_without_discount_it_is_the_group_mean_baseline(seed: int, size: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    got = macro_gae(*(t[c] for c in NAMES), size=size, lam=1.0)
    want = torch.where(t["mask"], group_norm(t["rewards"], t["groups"], scale="none").unsqueeze(-1), 0.0)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
