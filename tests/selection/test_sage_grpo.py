"""SAGE-GRPO: its equaliser and its terms against the oracle; what the columns say of a step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import denoising, inputs
from oracles import sage_grpo as oracle

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.objectives.terms.exact_kl import exact_kl
from coterie.objectives.terms.step_kl import step_kl
from coterie.policies.flow.steps import gains, noise_levels, transition
from coterie.recipe import resolve
from coterie.rollouts import Denoising
from coterie.selection.equalise_steps import equalise_steps
from tests.e2e.conftest import DENOISES, TINY

D = torch.float64


def spec_of(sampler: str, steps: int, shift: float = 1.0) -> Denoising:
    return Denoising(steps, shift, sampler=sampler, settings=(("noise", 0.7),))


@pytest.mark.oracle("sage-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_weights_are_the_oracles(kind: str) -> None:
    n = inputs.table(kind)
    t = inputs.tensors(n)
    got = equalise_steps(t["step_gain"], t["step_std"], t["mask"], t["weights"])
    want = oracle.equalised(*(n[c].tolist() for c in ("step_gain", "step_std", "mask", "weights")))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("sage-grpo")
def test_the_worked_examples() -> None:
    """Six steps with shift 3; and means whose KL is .0625 with steps .1 apart."""
    spec = spec_of("sage_sde", 6, 3.0)
    levels = denoising.schedule(6, 3.0)
    scales = [oracle.gradient_scale(s, a, 0.7) for s, a in pairwise(levels)]
    want = [5.153, 1.743, 1.0, 0.6, 0.336, 0.139]
    np.testing.assert_allclose(oracle.equaliser(scales), want, atol=6e-4)
    _, std = transition(spec, torch.zeros(6, 1, dtype=D), torch.zeros(6, 1, dtype=D), torch.arange(6))
    on = torch.ones(2, 6, dtype=torch.bool)
    got = equalise_steps(
        gains(spec, noise_levels(6, 3.0, D)).expand(2, 6), std.expand(2, 6), on, torch.ones(2, dtype=D)
    )
    np.testing.assert_allclose(got, [want, want], atol=6e-4)
    one, mask = torch.ones(1, 1, dtype=D), torch.ones(1, 1, dtype=torch.bool)
    both = exact_kl(0.0625 * one, one, mask, coef=1.0) + step_kl(-1.1 * one, -one, mask, coef=0.1)
    assert float(both) == pytest.approx(0.0725) == oracle.dual_kl([0.0625], [-1.1], [-1.0])


@pytest.mark.oracle("sage-grpo")
@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "sage_sde", "cps", "ddim", "ode"])
def test_the_gain_is_the_slope_of_the_mean(sampler: str) -> None:
    spec = Denoising(5, 2.0, sampler=sampler)
    v = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=D, requires_grad=True)
    mean, _ = transition(spec, torch.ones_like(v), v, torch.arange(5))
    mean.sum().backward()
    assert v.grad is not None
    torch.testing.assert_close(gains(spec, noise_levels(5, 2.0, D)), v.grad[:, 0].abs())


@pytest.mark.reduction("sage-grpo")
@given(seed=st.integers(0, 200), size=st.floats(0.1, 10.0))
def test_where_steps_are_alike_weights_stay(seed: int, size: float) -> None:
    """Then the loss is Flow-GRPO's; and without coefficients there is no KL."""
    t = inputs.tensors(inputs.table("random", seed))
    std = t["step_std"]
    got = equalise_steps(size * std, std, t["mask"], t["weights"])
    torch.testing.assert_close(got, t["weights"].unsqueeze(-1) * t["mask"], rtol=1e-12, atol=0.0)
    assert (step_kl(t["logp"], t["logp_old"], t["mask"], coef=0.0) == 0).all()


def test_the_gradient_of_the_term() -> None:
    t = inputs.tensors(inputs.table("random"))
    logp = t["logp"].clone().requires_grad_()
    step_kl(logp, t["logp_old"], t["mask"], coef=0.3).sum().backward()
    torch.testing.assert_close(logp.grad, -0.3 * t["mask"].double())
    assert torch.autograd.gradcheck(lambda x: step_kl(x, t["logp_old"], t["mask"]), [logp.detach().requires_grad_()])
    wild = torch.full((2, 2), -torch.inf, dtype=torch.bfloat16, requires_grad=True)
    on = torch.tensor([[True, False], [False, False]])
    old = torch.zeros(2, 2, dtype=torch.bfloat16)
    out = step_kl(torch.where(on, 14.0, wild), old, on)
    out.sum().backward()
    assert out.isfinite().all() and wild.grad is not None and wild.grad.isfinite().all()


def test_steps_without_weight_or_gain_are_left_alone() -> None:
    mask = torch.tensor([[True, True, True], [False] * 3])
    weights, std = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.full((2, 3), 0.5)
    gain = torch.tensor([[1.0, 0.0, 9.0], [1.0, 1.0, 1.0]])
    assert equalise_steps(gain, std, mask, weights).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert (equalise_steps(torch.zeros(2, 3), std, mask, weights) == weights * mask).all()


def test_a_rollouts_columns_are_its_own_steps() -> None:
    run = build(resolve(method="sage-grpo", overrides=[*TINY, *DENOISES]))
    batch = collect(run, 0, Clock())
    assert batch is not None
    levels = noise_levels(4).tolist()
    for step in range(1, 4):
        got = float(batch["step_gain"][0, step] / batch["step_std"][0, step])
        assert got == pytest.approx(oracle.gradient_scale(levels[step], levels[step + 1], 0.7), rel=1e-5)
