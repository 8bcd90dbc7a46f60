"""CHORD: demonstrations in the loop, with a weight a token and a share of the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chord, inputs

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.loop import credit, select
from coterie.metrics import Collector
from coterie.objectives import imitations, trust_regions
from coterie.recipe import resolve
from coterie.schedules import Schedule
from coterie.streams import stream
from coterie.update import _shown, imitate, update

WEIGHTS = ["none", "uncertainty", "probability"]
TINY = [
    "task={sort: {digits: 2, train: 40, held_out: 4, dense: true}}", "draw.prompts=2", "rollout.group_size=4",
    "rollout.max_tokens=4", "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1",
]  # fmt: skip


@pytest.mark.oracle("chord")
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_value_and_gradient_are_the_oracles(kind: str, weight: str) -> None:
    n = inputs.table(kind)
    value, slope = chord.imitation(n["logp"], n["mask"], weight)
    t = inputs.tensors(n)
    logp = torch.where(t["mask"], t["logp"], -torch.inf).requires_grad_()
    out = imitations.likelihood(logp, t["mask"], weight=weight)
    np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-12, atol=1e-14)
    out.sum().backward()
    np.testing.assert_allclose(logp.grad.numpy(), slope, rtol=1e-12, atol=1e-14)


@pytest.mark.oracle("chord")
def test_the_example() -> None:
    """A rollout at ratio 1.5 with A = 1, clipped; a demonstration's token at p = .2; mu .5: loss -.471245."""
    surrogate = -float(trust_regions.ppo_clip(torch.tensor([[1.5]]).double(), torch.ones(1).double()))
    assert chord.loss(surrogate, [[math.log(0.2)]], [[True]], 0.5, "uncertainty") == pytest.approx(-0.471245, abs=1e-6)
    logp = torch.tensor([[math.log(0.2)]], dtype=torch.float64, requires_grad=True)
    value = imitations.likelihood(logp, torch.ones(1, 1, dtype=torch.bool), weight="uncertainty").sum()
    (0.5 * value).backward()
    assert 0.5 * surrogate + 0.5 * float(value.detach()) == pytest.approx(-0.471245, abs=1e-6)
    assert float(logp.grad) == pytest.approx(-0.08)


@pytest.mark.oracle("chord")
@given(step=st.integers(0, 200), warmup=st.integers(1, 20), decay=st.integers(1, 100))
def test_the_schedule_of_mu(step: int, warmup: int, decay: int) -> None:
    rise = {"from": 0, "to": 0.9, "over": warmup}
    got = Schedule.model_validate({"from": rise, "to": 0.05, "over": decay, "after": warmup, "shape": "cosine"})
    assert got.at(step) == pytest.approx(chord.mu(step, warmup, decay, 0.9, 0.05), abs=1e-12)


def made() -> Any:
    run = build(resolve(method="chord", overrides=TINY))
    run.metrics = {}
    return run


def stepped(*overrides: str, method: str = "chord") -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The change of the weights in one update by plain gradient descent, and its metrics."""
    run = build(resolve(method=method, overrides=[*TINY, "optimizer={sgd: {lr: 1.0}}", *overrides]))
    run.metrics = {}
    before = {n: p.clone() for n, p in run.policy.state_dict().items()}
    batch = collect(run, 0, Clock())
    batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    update(run, batch, 0, Clock())
    return {n: p - before[n] for n, p in run.policy.state_dict().items()}, run.metrics


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    for name, change in one.items():
        torch.testing.assert_close(change, other[name], rtol=1e-4, atol=tolerance)


LOOSE = "update.max_grad_norm=1e9"


@pytest.mark.reduction("chord")
def test_without_a_share_it_is_grpo_and_without_rollouts_it_is_fine_tuning() -> None:
    none, metrics = stepped(LOOSE, "objective.imitation.mu=0")
    same(none, stepped(LOOSE, method="grpo")[0], 0.0)
    assert metrics["imitation/share"] == 0 and "imitation/nll" not in metrics
    alone, metrics = stepped(LOOSE, "objective.imitation={likelihood: {mu: 1, weight: none}}")
    run = build(resolve(method="chord", overrides=TINY))
    shown = run.demonstrations().draw(8, run.prompt, stream(0, "demonstrations", 0, 0, 0))
    completions = [run.policy.encode_completion(p.row["answer"]) for p in shown.prompts]
    loss = run.policy.sft_loss([p.tokens for p in shown.prompts], completions)
    loss.backward()
    same(alone, {n: -p.grad for n, p in run.policy.model.named_parameters()})
    assert metrics["imitation/nll"] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.reduction("chord")
def test_the_step_is_the_mixture_of_both() -> None:
    """Linear in mu: half of GRPO's step and half of fine-tuning's."""
    grpo, sft, half = (stepped(LOOSE, f"objective.imitation.mu={mu}")[0] for mu in (0, 1, 0.5))
    same(half, {n: 0.5 * grpo[n] + 0.5 * sft[n] for n in grpo})


def test_it_is_the_same_however_the_demonstrations_are_cut() -> None:
    whole, _ = stepped(LOOSE, "objective.imitation.mu=1")
    cut, _ = stepped(LOOSE, "objective.imitation.mu=1", "update.tokens_per_microbatch=8")
    same(cut, whole)


def test_each_optimizer_step_has_demonstrations_of_its_own() -> None:
    run = made()
    keys = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0))
    seen = [imitate(run, 0.5, _shown(run, *key), 0, Collector()) for key in keys]
    assert seen[0] == seen[4] and len(set(seen)) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_extremes_are_finite(weight: str, dtype: torch.dtype) -> None:
    logp = torch.tensor([[-1e4, -math.inf, 0.0]], dtype=dtype, requires_grad=True)
    out = imitations.likelihood(logp, torch.tensor([[True, False, True]]), weight=weight)
    out.sum().backward()
    assert out.dtype == dtype and out.isfinite().all() and logp.grad.isfinite().all() and not logp.grad[0, 1]
    assert not imitations.likelihood(logp, torch.zeros(1, 3, dtype=torch.bool), weight=weight).any()
