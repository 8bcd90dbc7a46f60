from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.llds import llds as oracle

from coterie.metrics import Collector, collect
from coterie.objectives.terms import llds

NAMES = ("logp", "logp_old", "advantages", "mask")


@pytest.mark.oracle("llds")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("gate", ["action", "rollout", "decision"])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_against_the_oracle(kind: str, gate: Any, wide: bool) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        if wide:
            n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        value, slope = oracle(*(n[c] for c in NAMES), coef=0.3, gate=gate)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in ("logp", "logp_old", "advantages")}
        t["logp"].requires_grad_()
        got = llds(*(t[c] for c in NAMES), coef=0.3, gate=gate)
        np.testing.assert_allclose(got.detach()[t["mask"]], value[n["mask"]], rtol=1e-9, atol=1e-12)
        got.sum().backward()
        np.testing.assert_allclose(t["logp"].grad, slope, rtol=1e-9, atol=1e-12)


def row(logp: list[float], old: list[float], a: float = 0.0, mask: list[int] | None = None, dtype: Any = None) -> Any:
    new, before = (torch.tensor([x], dtype=dtype or torch.float64) for x in (logp, old))
    return new.requires_grad_(), before, torch.tensor([a], dtype=new.dtype), torch.tensor([mask or [1] * len(old)]) > 0


@pytest.mark.oracle("llds")
def test_numbers_of_the_source() -> None:
    t = row([-1.5, -1.0], [-1.0, -1.2])
    with collect(seen := Collector(), t[3]):
        value = llds(*t).mean()
    value.backward()
    assert float(value.detach()) == pytest.approx(0.05)
    np.testing.assert_allclose(t[0].grad, [[-0.1, 0.0]])
    assert seen.means() == {"llds/acting_share": 0.5, "llds/lost": pytest.approx(0.25)}


def test_a_tool_call_parts_actions_and_bad_rollouts_are_left_alone() -> None:
    """The first action gained on the whole, the second lost; together they gained."""
    new, old = [-1.0, -1.2, 0.0, -2.0], [-2.0, -1.0, 0.0, -1.5]
    assert llds(*row(new, old, 1.0, [1, 1, 0, 1])).tolist() == [[0, 0, 0, pytest.approx(0.1)]]
    assert not llds(*row(new, old, 1.0, [1, 1, 0, 1]), gate="rollout").any()
    assert not llds(*row(new, old, -1.0, [1, 1, 0, 1])).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: Any) -> None:
    t = row([-40.0, -1e-3, -torch.inf], [-26.0, -14.0, -torch.inf], 1.0, [1, 1, 0], dtype)
    value = llds(*t, gate="decision")
    value.sum().backward()
    assert value.isfinite().all() and t[0].grad.isfinite().all() and not t[0].grad[0, 2]


def test_gradcheck_where_it_is_smooth() -> None:
    t = row([-1.5, -1.0, -3.0], [-1.0, -1.2, -2.0])
    assert torch.autograd.gradcheck(lambda x: llds(x, *t[1:]), t[0])


@pytest.mark.reduction("llds")
@given(st.integers(0, 10_000))
def test_nothing_on_policy_nor_without_weight(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    assert not llds(*(t[c] for c in NAMES), coef=0.0).any()
    logp = t["logp_old"].clone().requires_grad_()
    value = llds(logp, t["logp_old"], t["advantages"], t["mask"])
    value.sum().backward()
    assert not value.any() and not logp.grad.any()
