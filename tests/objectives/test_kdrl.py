"""KDRL: the reverse KL to a teacher beside the surrogate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs, kdrl

from coterie.errors import RewardError
from coterie.objectives import aggregations, ratios, terms, trust_regions

READS = ("logp", "logp_teacher", "groups", "mask", "correct")


def term(t: dict[str, Any], **settings: Any) -> torch.Tensor:
    return terms.distillation(*(t[name] for name in READS), **settings)


@pytest.mark.oracle("kdrl")
@pytest.mark.parametrize("on", ["all", "wrong", "failed_groups"])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_are_the_oracles(kind: str, on: str) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        n["logp_teacher"][:, 2] = np.nan  # an end token that the teacher does not have
        value, slope = kdrl.distillation(
            *(n[k] for k in ("logp", "logp_teacher", "groups", "correct", "mask")), 0.1, on
        )
        t = inputs.tensors(n)
        t["logp"].requires_grad_()
        out = term(t, coef=0.1, on=on)
        np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-12, atol=1e-12)
        out.sum().backward()
        np.testing.assert_allclose(t["logp"].grad.numpy(), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("kdrl")
def test_the_example() -> None:
    """logp -1, teacher -2, A .5, beta .1: loss -.45, and the gradient is that of an advantage of .4."""
    logp = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    mask, groups = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    surrogate = trust_regions.ppo_clip(ratios.token(logp, logp.detach(), mask), torch.tensor([0.5]).double())
    loss = (terms.distillation(logp, torch.full((1, 1), -2.0).double(), groups, mask, coef=0.1) - surrogate).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.45) and float(logp.grad) == pytest.approx(-0.4)


@pytest.mark.oracle("kdrl")
def test_gradcheck() -> None:
    t = inputs.tensors(inputs.table("random", 5))
    for estimator in ("k2", "k3"):
        assert torch.autograd.gradcheck(
            lambda x, e=estimator: term(t | {"logp": x}, coef=1.0, estimator=e), t["logp"].clone().requires_grad_()
        )


@pytest.mark.reduction("kdrl")
@given(seed=st.integers(0, 10_000), coef=st.floats(0.0, 1.0))
def test_it_is_grpo_with_an_advantage_lowered_by_the_gap(seed: int, coef: float) -> None:
    """On policy; without a coefficient it is GRPO, without an advantage distillation alone."""
    t = inputs.tensors(inputs.table("random", seed))
    t["logp"] = t["logp_old"].clone()
    c = aggregations.token(t["weights"], t["mask"], t["groups"])

    def gradient(advantages: torch.Tensor, beta: float) -> torch.Tensor:
        logp = t["logp"].clone().requires_grad_()
        surrogate = trust_regions.ppo_clip(ratios.token(logp, t["logp_old"], t["mask"]), advantages)
        value = -surrogate + term(t | {"logp": logp}, coef=beta)
        inputs.scalar(value, c).backward()
        return logp.grad

    spread = t["advantages"].unsqueeze(-1).expand_as(t["logp"])
    lowered = spread - coef * (t["logp"] - t["logp_teacher"])
    torch.testing.assert_close(gradient(spread, coef), gradient(lowered, 0.0))
    zero = term(t, coef=0.0)
    assert not zero.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    logp = torch.tensor([[-1.0, -math.inf, 0.0], [-40.0, -1e-4, -2.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-15.0, 0.0, -math.inf], [-1.0, -14.0, math.nan]], dtype=dtype)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    out = terms.distillation(logp, teacher, torch.tensor([0, 0]), mask, coef=1.0)
    assert out.dtype == dtype and out.isfinite().all()
    out.sum().backward()
    assert logp.grad.isfinite().all() and not logp.grad[:, 2].any()


def test_a_mask_by_verdicts_needs_a_verifier() -> None:
    t = inputs.tensors(inputs.table("random"))
    with pytest.raises(RewardError, match="on=all"):
        term(t | {"correct": None}, on="wrong")
