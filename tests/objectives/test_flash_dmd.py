"""Flash-DMD: the reference's finer steps as the target of one, against plain loops and through the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import flash_dmd as oracle
from oracles import inputs
from small_flow import small_flow

from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import CoterieError
from coterie.loop import credit, select
from coterie.objectives.terms.step_distillation import step_distillation
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.reference import Reference
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.rollout.strategies.plain import plain
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling
from tests.e2e.conftest import DENOISES, TINY

D = torch.float64
STEPS = 3


def sampled(policy: FlowPolicy, **settings: object) -> Rollouts:
    spec = replace(Denoising(STEPS, shift=2.0), **settings)  # type: ignore[arg-type]
    prompts = [Prompt((k,), index=k) for k in range(2)]
    return plain(
        policy, prompts, [[10 * g + k for k in range(2)] for g in range(2)], Sampling(denoising=spec), False, 0
    )


def said(policy: FlowPolicy, group: int, guidance: float = 1.0):  # type: ignore[no-untyped-def]
    """The oracle's velocity: the model itself, asked for one sample."""

    def ask(x: list[float], level: float, condition: int) -> np.ndarray:
        given = torch.tensor([x], dtype=D), torch.tensor([level], dtype=D), torch.tensor([condition])
        with torch.no_grad():
            return policy.model(given[0], given[1], given[2]).numpy()[0]

    def velocity(x: list[float], level: float) -> list[float]:
        free = ask(x, level, policy.model.unconditional)
        return (free + guidance * (ask(x, level, group) - free)).tolist()

    return velocity


@pytest.mark.oracle("flash-dmd")
@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_target_and_its_distance_are_the_oracles(substeps: int, guidance: float) -> None:
    policy, frozen = small_flow(), small_flow(2)
    rollouts = sampled(policy, guidance=guidance, stochastic=(0, 2))
    target = frozen.fine_velocities(rollouts, substeps)
    made = replace(rollouts, media={**rollouts.media, "velocity_fine": target})
    gaps = policy.score(made, {"fine_gap"})["fine_gap"]
    assert (target[:, 1] == 0).all() and (gaps[:, 1] == 0).all()  # no decision
    for row, group in enumerate(rollouts["groups"].tolist()):
        for step in (0, 2):
            x = rollouts.media["states"][row, step].tolist()
            want = oracle.fine_velocity(x, said(frozen, group, guidance), step, STEPS, 2.0, substeps)
            np.testing.assert_allclose(target[row, step], want, rtol=1e-9, atol=1e-10)
            own = said(policy, group, guidance)(x, oracle.level(step, STEPS, 2.0))
            assert float(gaps[row, step].detach()) == pytest.approx(oracle.gap(own, want), rel=1e-9)


@pytest.mark.oracle("flash-dmd")
def test_a_worked_example() -> None:
    """v_ref = -x from 2 at level 1 to level 1/2 in two steps: 2, 2.5, 3.125, so one step must go at -2.25."""
    assert oracle.fine_velocity([2.0], lambda x, _: [-x[0]], 0, 2, 1.0, 2) == [-2.25]
    assert oracle.gap([-2.0], [-2.25]) == 0.0625
    got = step_distillation(torch.tensor([[0.0625]], dtype=D), torch.ones(1, 1, dtype=torch.bool), coef=0.1)
    assert float(got) == pytest.approx(0.00625)


@pytest.mark.oracle("flash-dmd")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_term_is_the_oracles(kind: str) -> None:
    n = inputs.table(kind)
    t = inputs.tensors(n)
    want = oracle.term(n["fine_gap"].tolist(), n["mask"].tolist(), 0.3)
    np.testing.assert_allclose(step_distillation(t["fine_gap"], t["mask"], coef=0.3), np.array(want), rtol=1e-12)


@pytest.mark.oracle("flash-dmd")
def test_the_gradient_of_the_velocity_is_the_oracles() -> None:
    """Through the policy: the bias of its last layer is added to every velocity, so its gradient adds up theirs."""
    policy, frozen = small_flow(), small_flow(2)
    rollouts = sampled(policy)
    made = replace(rollouts, media={**rollouts.media, "velocity_fine": frozen.fine_velocities(rollouts, 2)})
    gaps = policy.score(made, {"fine_gap"})["fine_gap"]
    step_distillation(gaps, made["mask"], coef=0.3).sum().backward()
    bias = policy.model.leave.bias
    assert bias.grad is not None
    want = np.zeros(3)
    for row, group in enumerate(rollouts["groups"].tolist()):
        for step in range(STEPS):
            x = rollouts.media["states"][row, step].tolist()
            target = oracle.fine_velocity(x, said(frozen, group), step, STEPS, 2.0, 2)
            own = said(policy, group)(x, oracle.level(step, STEPS, 2.0))
            want += 0.3 * np.array(oracle.gap_gradient(own, target))
    np.testing.assert_allclose(bias.grad.numpy(), want, rtol=1e-8)


@pytest.mark.reduction("flash-dmd")
@given(seed=st.integers(0, 100))
def test_without_a_weight_or_a_gap_there_is_no_term(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed=seed))
    assert (step_distillation(t["fine_gap"], t["mask"], coef=0.0) == 0).all()
    assert (step_distillation(torch.zeros_like(t["fine_gap"]), t["mask"], coef=9.0) == 0).all()


@pytest.mark.reduction("flash-dmd")
def test_one_step_of_the_policy_itself_is_no_distance() -> None:
    """Nor are many where the reference goes straight on."""
    policy = small_flow()
    rollouts = sampled(policy)
    made = replace(rollouts, media={**rollouts.media, "velocity_fine": Reference(policy).fine_velocities(rollouts, 1)})
    assert float(policy.score(made, {"fine_gap"})["fine_gap"].detach().abs().max()) < 1e-20
    with torch.no_grad():
        for p in policy.model.parameters():
            p.zero_()
        policy.model.leave.bias.fill_(0.7)
    straight = policy.fine_velocities(rollouts, 5)
    torch.testing.assert_close(straight, policy.fine_velocities(rollouts, 1))


@pytest.mark.reduction("flash-dmd")
def test_without_a_weight_a_run_is_that_of_the_reward_alone(tmp_path: Path) -> None:
    ends = []
    for name, terms in (("none", "[]"), ("off", "[{step_distillation: {coef: 0.0}}]"), ("on", "[step_distillation]")):
        settings = [*TINY, *DENOISES, "warm_start.steps=3", "steps=2"]
        recipe = resolve(method="flash-dmd", overrides=[*settings, f"objective.terms={terms}"])
        result = start(recipe, tmp_path / name, quiet=True)
        ends.append({k: v.clone() for k, v in result.policy.state_dict().items()})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert any(not torch.equal(ends[0][k], ends[2][k]) for k in ends[0])


def test_the_loop_makes_the_target_with_the_reference_as_it_was() -> None:
    run = build(
        resolve(method="flash-dmd", overrides=[*TINY, *DENOISES, "objective.terms.step_distillation.substeps=3"])
    )
    run.reference()
    before = {k: v.clone() for k, v in run.policy.state_dict().items()}
    with torch.no_grad():
        for p in run.policy.trainable_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = collect(run, 0, Clock())
    assert batch is not None
    batch = provide(run, select(run, credit(run, batch, 0, Clock()), 0, Clock()), "objective", 0, Clock())
    moved = {k: v.clone() for k, v in run.policy.state_dict().items()}
    run.policy.load_state_dict(before)
    torch.testing.assert_close(batch.media["velocity_fine"], run.policy.fine_velocities(batch, 3), rtol=1e-4, atol=1e-5)
    run.policy.load_state_dict(moved)
    assert float((batch.media["velocity_fine"] - run.policy.fine_velocities(batch, 3)).abs().max()) > 1e-3


def test_extreme_gaps_stay_finite_and_the_gradient_is_the_weight() -> None:
    on = torch.tensor([[True, True, False], [False, False, False]])
    for dtype in (torch.float32, torch.bfloat16):
        wild = torch.tensor([[1e6, 0.0, float("inf")], [float("nan")] * 3], dtype=dtype, requires_grad=True)
        out = step_distillation(wild, on, coef=0.5)
        out.sum().backward()
        assert out.isfinite().all() and wild.grad is not None
        torch.testing.assert_close(wild.grad, 0.5 * on.to(dtype))


@pytest.mark.parametrize(("settings", "told"), [
    (["rollout.strategy=renoised"], "draws of noise on finished samples"),
    (["objective.terms.step_distillation.substeps=0"], "substeps"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(CoterieError, match=told):
        run = build(resolve(method="flash-dmd", overrides=[*TINY, *DENOISES, *settings]))
        batch = collect(run, 0, Clock())
        assert batch is not None
        provide(run, select(run, credit(run, batch, 0, Clock()), 0, Clock()), "objective", 0, Clock())
