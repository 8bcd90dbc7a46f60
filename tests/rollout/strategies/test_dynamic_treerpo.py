"""Dynamic-TreeRPO: the tree in a window, noise by depth, the clip and the target, against the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import dynamic_treerpo as oracle
from oracles import inputs

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.objectives.terms.best_path import best_path
from coterie.objectives.trust_regions.advantage_clip import advantage_clip
from coterie.objectives.trust_regions.ppo_clip import ppo_clip
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowShape, FlowSpec
from coterie.policies.flow.steps import transition
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.rollout.strategies.sliding_window import sliding_window
from coterie.rollout.strategies.window_tree import window_tree
from coterie.rollouts import Denoising, Prompt, Sampling
from tests.e2e.conftest import DENOISES, TINY

D = torch.float64
PROMPTS = [Prompt((k,), index=k) for k in range(2)]
SEEDS = [[100 * g + k for k in range(8)] for g in range(2)]
TERM = ("best_gap", "rewards", "groups", "mask", "advantages")
TREE = ["rollout.strategy.depth=2", "rollout.group_size=4", "rollout.strategy.every=1"]


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    made = FlowPolicy.load(
        FlowSpec(flow=FlowShape(layers=1, width=16, heads=2), dtype="float64", device="cpu"), (3,), ["a", "b"]
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=D) * 0.3)
    return made


@pytest.mark.oracle("dynamic-treerpo")
@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps", "sage_sde", "ddim"])
def test_noise_rises_with_depth_and_the_log_prob_knows(policy: FlowPolicy, sampler: str) -> None:
    spec = Sampling(denoising=Denoising(6, sampler=sampler, settings=(("noise", 0.5),)))
    made = window_tree(policy, PROMPTS, SEEDS, spec, False, 1, depth=3, every=1, rise=0.6)
    assert made["mask"].tolist() == [[False, True, True, True, False, False]] * 16
    for k in range(3):
        plain = Denoising(6, sampler=sampler, settings=(("noise", oracle.noise_at(0.5, 0.6, k, 3)),))
        x = torch.zeros(1, 3, dtype=D)
        _, std = transition(plain, x, x, torch.tensor([1 + k]))
        torch.testing.assert_close(made["step_std"][:, 1 + k], std.expand(16))
    torch.testing.assert_close(policy.score(made)["logp"].detach(), made["logp_old"], rtol=1e-9, atol=1e-9)
    states = made.media["states"][:8]
    assert [len(torch.unique(states[:, s], dim=0)) for s in range(7)] == [1, 1, 2, 4, 8, 8, 8]


@pytest.mark.oracle("dynamic-treerpo")
def test_the_worked_examples() -> None:
    """Depth 2 of 4 with rise .5: .7 becomes .875. A reward .1 above, bounds 1e-4 and 1e-3: 5.72e-4."""
    assert oracle.noise_at(0.7, 0.5, 2, 4) == pytest.approx(0.875)
    assert oracle.bound(0.4 - 0.3, 1.0, 1e-4, 1e-3) == pytest.approx(5.72e-4, abs=1e-6)
    far = torch.tensor([[2.0]], dtype=D)
    got = advantage_clip(far, torch.tensor([[0.1]], dtype=D))
    assert float(got) == pytest.approx(0.1 * (1 + 5.7248e-4), rel=1e-7)


@pytest.mark.oracle("dynamic-treerpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_clip_and_target_are_the_oracles(kind: str) -> None:
    n = inputs.table(kind)
    t = inputs.tensors(n)
    a = n["advantages"] if n["advantages"].ndim == 2 else np.repeat(n["advantages"][:, None], n["mask"].shape[1], 1)
    got = advantage_clip(t["ratio"], torch.from_numpy(a), eps_low=0.05, eps_high=0.4, sensitivity=0.7)
    want = np.vectorize(lambda r, x: oracle.surrogate(r, x, 0.7, 0.05, 0.4))(n["ratio"], a)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for above, sensitivity in ((None, 0.0), (0.4, 0.0), (None, 0.7), (0.4, 3.0)):
        want = oracle.target(*(n[c].tolist() for c in TERM), 0.3, above, sensitivity)
        for advantages in (t["advantages"], torch.from_numpy(a)):  # one a rollout, or one a decision
            term = best_path(*(t[c] for c in TERM[:-1]), advantages, coef=0.3, above=above, sensitivity=sensitivity)
            np.testing.assert_allclose(term, want, rtol=1e-12)


@pytest.mark.oracle("dynamic-treerpo")
def test_what_went_badly_is_pulled_most() -> None:
    """Twice the weight less the clip's share: 1 at the mean, 1/2 at A = ln 3, 3/2 at -ln 3; no gradient to A."""
    assert [oracle.pull(a, 1.0) for a in (0.0, math.log(3), -math.log(3))] == pytest.approx([1.0, 0.5, 1.5])
    t = inputs.tensors(inputs.table("random"))
    a = torch.randn(t["mask"].shape, dtype=D).requires_grad_()
    columns = [t[c] for c in TERM[:-1]]
    low, high = (best_path(*columns, a + shift, sensitivity=1.0, coef=1.0) for shift in (-0.5, 0.5))
    assert not low.requires_grad and bool((low >= high).all()) and bool((low > high)[t["mask"]].any())
    wild = best_path(*columns, 1e4 * a.detach(), sensitivity=1.0, coef=1.0)
    assert bool(wild.isfinite().all())


@pytest.mark.reduction("dynamic-treerpo")
@given(seed=st.integers(0, 200), eps=st.floats(1e-4, 0.5))
def test_without_sensitivity_it_is_ppos_clip(seed: int, eps: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    got = advantage_clip(t["ratio"], t["advantages"], eps_low=eps, eps_high=eps, sensitivity=0.0)
    torch.testing.assert_close(got, ppo_clip(t["ratio"], t["advantages"], eps_low=eps, eps_high=eps))
    assert (best_path(*(t[c] for c in TERM), coef=0.0, sensitivity=eps) == 0).all()
    unweighted = best_path(*(t[c] for c in TERM), coef=eps)
    torch.testing.assert_close(unweighted, torch.where(t["mask"], eps * t["best_gap"], 0.0))


@pytest.mark.reduction("dynamic-treerpo")
def test_without_forks_and_rise_it_is_a_window(policy: FlowPolicy) -> None:
    """One path a prompt: MixGRPO's window, wherever it slides."""
    seeds = [row[:1] for row in SEEDS]
    for step in (0, 1, 5):
        spec = Sampling(denoising=Denoising(6))
        got = window_tree(policy, PROMPTS, seeds, spec, False, step, depth=3, branching=1, rise=0.0, every=2)
        want = sliding_window(policy, PROMPTS, seeds, spec, False, step, size=3, every=2)
        assert torch.equal(got["mask"], want["mask"])
        torch.testing.assert_close(got.media["states"], want.media["states"])
        torch.testing.assert_close(got["logp_old"], want["logp_old"])


def test_gradients() -> None:
    t = inputs.tensors(inputs.table("random"))
    leaf = t["ratio"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: advantage_clip(r, t["advantages"], eps_low=0.1, eps_high=0.4), [leaf])
    gap = t["best_gap"].clone().requires_grad_()
    best_path(gap, *(t[c] for c in TERM[1:]), coef=0.5, sensitivity=0.7).sum().backward()
    weight = 2 * torch.sigmoid(-0.7 * t["advantages"]).view(len(gap), -1)
    torch.testing.assert_close(gap.grad, 0.5 * weight * t["mask"].to(D))
    wild = torch.tensor([[0.0, 1e6], [1.0, 1.0]], requires_grad=True)
    out = advantage_clip(wild, torch.tensor([14.0, -1e4]))
    out.sum().backward()
    assert out.isfinite().all() and wild.grad is not None and wild.grad.isfinite().all()


def test_the_target_is_the_velocity_of_the_best_path() -> None:
    """By hand from the states, before the update; 0 for the best rollout's own decisions, with a gradient elsewhere."""
    run = build(resolve(method="dynamic-treerpo", overrides=[*TINY, *DENOISES, *TREE, "warm_start.steps=3"]))
    with torch.no_grad():
        for p in run.policy.trainable_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = collect(run, 0, Clock())
    assert batch is not None
    batch = provide(run, select(run, credit(run, batch, 0, Clock()), 0, Clock()), "objective", 0, Clock())
    gap = run.policy.score(batch, {"best_gap"})["best_gap"]
    rewards, groups, spec = batch["rewards"].tolist(), batch["groups"].tolist(), batch.sampling.denoising
    for row, step in ((1, 0), (6, 1), (15, 1)):
        best = oracle.best_rollout(rewards, groups, groups[row])
        at = torch.tensor([step])
        own, other = (
            run.policy.velocity(batch.media["states"][[i], step], batch.prompts, batch["groups"][[i]], at, spec)
            for i in (row, best)
        )
        want = float(((own - other) ** 2).mean().detach())
        assert float(gap[row, step].detach()) == pytest.approx(want, rel=1e-4, abs=1e-9)
        assert float(gap[best].detach().abs().max()) < 1e-9
    gap.sum().backward()
    assert any(bool((p.grad != 0).any()) for p in run.policy.trainable_parameters() if p.grad is not None)


@pytest.mark.parametrize(("settings", "told"), [
    ({"depth": 2}, "make 4 leaves, and rollout.group_size is 8"),
    ({"depth": 6}, "does not fit 6 steps"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(policy: FlowPolicy, settings: dict[str, int], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        window_tree(policy, PROMPTS, SEEDS, Sampling(denoising=Denoising(6)), False, 0, **settings)
