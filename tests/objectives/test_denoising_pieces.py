"""Pieces for policies that denoise against their oracles: ratio, term, selections and advantage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import denoising as oracle
from oracles import inputs

from coterie import methods, registry
from coterie.credit.clip_advantage import clip_advantage
from coterie.credit.group_norm import group_norm
from coterie.credit.step_norm import step_norm
from coterie.objectives.ratios.guarded import guarded
from coterie.objectives.ratios.token import token
from coterie.objectives.terms.exact_kl import exact_kl
from coterie.policies.flow.steps import divergence, noise_levels, transition
from coterie.recipe import pieces_of, resolve
from coterie.rollouts import Denoising
from coterie.selection.drop_last import drop_last
from coterie.selection.random_steps import random_steps
from coterie.selection.weigh_noise import weigh_noise

D = torch.float64
ON = torch.ones(1, 1, dtype=torch.bool)


def one(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=D)


@pytest.mark.oracle("grpo-guard")
@given(seed=st.integers(0, 200))
def test_the_guarded_ratio_is_the_oracles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (mean, old), (logp, logp_old), std = rng.standard_normal((2, 4)), rng.standard_normal(2), rng.uniform(0.05, 1.5)
    now, before = (torch.from_numpy(m).unsqueeze(0) for m in (mean, old))
    gap = divergence(now, before, torch.tensor([std], dtype=D), "mean").unsqueeze(-1)
    got = guarded(one(logp), one(logp_old), gap, one(std), ON)
    want = oracle.guarded(logp, logp_old, mean.tolist(), old.tolist(), std)
    assert float(got) == pytest.approx(min(max(want, math.exp(-20)), math.exp(20)), rel=1e-9)


@pytest.mark.oracle("grpo-guard")
def test_the_worked_example_of_the_guard() -> None:
    gap = divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.1, 2.0]]), torch.tensor([0.2]), "mean")
    assert float(guarded(one(-1.0), one(-1.1), gap.view(1, 1).to(D), one(0.2), ON)) == pytest.approx(1.0330, abs=5e-5)


@pytest.mark.reduction("grpo-guard")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_without_a_shift_and_with_unit_noise_it_is_ppos(kind: str) -> None:
    t = inputs.tensors(inputs.table(kind))
    still, unit = torch.zeros_like(t["mean_gap"]), torch.ones_like(t["step_std"])
    got = guarded(t["logp"], t["logp_old"], still, unit, t["mask"])
    torch.testing.assert_close(got, token(t["logp"], t["logp_old"], t["mask"]))
    on_policy = guarded(t["logp_old"], t["logp_old"], still, t["step_std"], t["mask"])
    assert (on_policy == 1).all()


@pytest.mark.reduction("grpo-guard")
def test_the_guard_centres_the_ratio() -> None:
    """Over samples of the old step the plain log-ratio is -gap on average, the guarded one 0, linear in the shift."""
    generator = torch.Generator().manual_seed(0)
    std, shift, numbers = 0.3, 0.02, 8
    draws = torch.randn(100_000, numbers, generator=generator, dtype=D)
    logp_old = -0.5 * (draws**2).mean(-1)
    logp = -0.5 * ((draws - shift / std) ** 2).mean(-1)
    gap = torch.full_like(logp, 0.5 * (shift / std) ** 2)
    mask = torch.ones_like(logp, dtype=torch.bool).unsqueeze(-1)
    columns = [x.unsqueeze(-1) for x in (logp, logp_old, gap, torch.full_like(gap, std))]
    error = float(guarded(*columns, mask).log().std()) / math.sqrt(len(draws))
    assert abs(float(guarded(*columns, mask).log().mean())) < 4 * error
    assert float((logp - logp_old).mean()) < -0.5 * float(gap[0])
    assert float(guarded(*columns, mask).log().std()) == pytest.approx(shift / math.sqrt(numbers), rel=0.02)


def test_the_guards_gradient() -> None:
    t = inputs.tensors(inputs.table("random"))
    leaves = [t[n].clone().requires_grad_() for n in ("logp", "mean_gap")]
    assert torch.autograd.gradcheck(
        lambda logp, gap: guarded(logp, t["logp_old"], gap, t["step_std"], t["mask"])[t["mask"]], leaves
    )


@pytest.mark.parametrize("move", [-14.0, 14.0, -1e4, 1e4])
def test_absurd_log_ratios_stay_finite(move: float) -> None:
    logp = torch.full((2, 3), move, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    old = torch.zeros(2, 3).masked_fill(~mask, -math.inf)
    out = guarded(logp, old, torch.ones(2, 3), torch.full((2, 3), 0.5), mask)
    out.sum().backward()
    assert out.isfinite().all() and logp.grad is not None and logp.grad.isfinite().all()


@pytest.mark.oracle("flow-grpo", "tempflow-grpo")
def test_the_worked_example_of_the_exact_kl() -> None:
    """Means apart by [.1, 0], diffusion .6, step -.1: .0694 of the step, .00694 as the authors' code has it."""
    std = 0.6 * math.sqrt(0.1)
    kl = divergence(torch.tensor([[0.1, 0.0]], dtype=D), torch.zeros(1, 2, dtype=D), torch.tensor([std]), "mean")
    assert oracle.divergence([0.1, 0.0], [0.0, 0.0], std) == pytest.approx(0.06944, abs=1e-5)
    value = kl.view(1, 1).requires_grad_()
    assert float(exact_kl(value, one(0.1), ON, coef=1.0).detach()) == pytest.approx(0.06944, abs=1e-5)
    assert float(exact_kl(value, one(0.1), ON, coef=1.0, over="diffusion").detach()) == pytest.approx(
        0.006944, abs=1e-6
    )
    exact_kl(value, one(0.1), ON, coef=3.0).sum().backward()
    assert value.grad is not None and float(value.grad) == 3.0


@pytest.mark.reduction("flow-grpo", "tempflow-grpo")
def test_without_a_weight_there_is_no_kl() -> None:
    t = inputs.tensors(inputs.table("random"))
    assert (exact_kl(t["kl_ref"], t["step_size"], t["mask"], coef=0.0) == 0).all()


def test_the_last_decisions_are_dropped() -> None:
    mask = torch.tensor([[True, True, True, False], [False, True, False, True], [False] * 4])
    weights = torch.tensor([2.0, 1.0, 1.0])
    assert drop_last(mask, weights).tolist() == [[2, 2, 0, 0], [0, 1, 0, 0], [0] * 4]
    assert drop_last(mask, weights, count=0).tolist() == [[2, 2, 2, 0], [0, 1, 0, 1], [0] * 4]
    assert (drop_last(mask, weights, count=9) == 0).all()


@pytest.mark.reduction("dancegrpo")
def test_a_random_share_of_the_steps() -> None:
    mask = torch.ones(400, 9, dtype=torch.bool)
    weights = drop_last(mask, torch.full((400,), 0.5))
    kept = random_steps(mask, weights, 3, share=0.6)
    assert ((kept > 0).sum(-1) == int(8 * 0.6)).all() and set(kept.unique().tolist()) == {0.0, 0.5}
    assert (kept[:, 8] == 0).all()
    assert ((kept > 0).double().mean(0)[:8] - 0.5).abs().max() < 0.1  # every step as often
    assert torch.equal(kept, random_steps(mask, weights, 3, share=0.6))
    assert not torch.equal(kept, random_steps(mask, weights, 4, share=0.6))
    assert torch.equal(random_steps(mask, weights, 3, share=1.0), weights)
    assert (random_steps(mask, weights, 3, share=0.0) == 0).all()


@pytest.mark.oracle("tempflow-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_advantages_by_step_are_the_oracles(kind: str) -> None:
    n = inputs.table(kind)
    for mask in (n["mask"], n["mask"] & (np.arange(n["mask"].shape[1]) >= (np.arange(len(n["mask"])) % 2)[:, None])):
        t = inputs.tensors({**n, "mask": mask})
        want = oracle.step_norm(n["rewards"].tolist(), n["groups"].tolist(), mask.tolist())
        np.testing.assert_allclose(step_norm(t["rewards"], t["groups"], t["mask"]), want, rtol=1e-9, atol=1e-12)
        want = oracle.weigh_noise(n["step_std"].tolist(), mask.tolist(), n["weights"].tolist())
        np.testing.assert_allclose(weigh_noise(t["step_std"], t["mask"], t["weights"]), want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("tempflow-grpo")
def test_the_worked_examples_of_tempflow() -> None:
    rewards = torch.tensor([[1, 0.2], [0, 0.4], [1, 0.9], [0, 0.1]], dtype=D)
    mask = torch.eye(2, dtype=torch.bool).repeat(4, 1)
    got = step_norm(rewards.flatten(), torch.zeros(8, dtype=torch.long), mask).view(4, 2)
    want = [[0.9998, -0.6487], [-0.9998, 0], [0.9998, 1.6217], [-0.9998, -0.9730]]
    np.testing.assert_allclose(got, want, atol=6e-5)
    spec = Denoising(10, 3.0, settings=(("noise", 0.7),))
    x = torch.zeros(10, 1, dtype=D)
    _, std = transition(spec, x, x, torch.arange(10))
    want_std = [0.7, 0.7384, 0.5317, 0.4415, 0.3877, 0.35, 0.3195, 0.2905, 0.2562, 0.2021]
    np.testing.assert_allclose(std, want_std, atol=6e-5)
    on = torch.ones(1, 10, dtype=torch.bool)
    weights = weigh_noise(std.unsqueeze(0), on, drop_last(on, torch.ones(1, dtype=D)))
    np.testing.assert_allclose(
        weights[0, :9], [1.568, 1.655, 1.191, 0.989, 0.869, 0.784, 0.716, 0.651, 0.574], atol=2e-3
    )
    assert float(weights[0, 9]) == 0.0 and noise_levels(10, 3.0)[0] == 1.0


@pytest.mark.reduction("tempflow-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_where_all_begin_alike_it_is_group_norm_and_equal_noise_changes_no_weight(kind: str) -> None:
    t = inputs.tensors(inputs.table(kind))
    on = torch.ones_like(t["mask"])
    got = step_norm(t["rewards"], t["groups"], on)
    torch.testing.assert_close(got, group_norm(t["rewards"], t["groups"], ddof=0))
    even = weigh_noise(torch.full_like(t["step_std"], 0.3), on, t["weights"])
    torch.testing.assert_close(even, t["weights"].unsqueeze(-1).expand(on.shape), rtol=1e-12, atol=0.0)


@pytest.mark.oracle("flow-grpo", "dancegrpo", "mixgrpo")
def test_the_worked_examples_of_advantages() -> None:
    rewards = torch.tensor([1, 0, 0, 1, 0.2, 0.4, 0.6, 0.8], dtype=D)
    groups = torch.arange(8) // 4
    flow = [1.2907, -1.2907, -1.2907, 1.2907, -0.7744, -0.2581, 0.2581, 0.7744]
    np.testing.assert_allclose(advantage("flow-grpo", rewards, groups), flow, atol=6e-5)
    dance = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=D)
    for slug in ("dancegrpo", "mixgrpo"):
        got = advantage(slug, dance, torch.zeros(4, dtype=torch.long))
        np.testing.assert_allclose(got, [-1.0247, 0.1464, 1.3175, -0.4392], atol=6e-5)
    spread = torch.tensor([1.0] + [0.0] * 99, dtype=D)
    assert float(advantage("dancegrpo", spread, torch.zeros(100, dtype=torch.long)).max()) == 5.0


def advantage(slug: str, rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """What the method's own baseline and modifiers make of rewards."""
    table = {"rewards": rewards, "groups": groups, "mask": torch.ones(len(rewards), 2, dtype=torch.bool)}
    for slot, bound in pieces_of(methods.load(slug).layer):
        if slot.startswith("credit"):
            table["advantages"] = bound(table)
    return table["advantages"]


@pytest.mark.reduction("ddpo", "cps", "mixgrpo", "dancegrpo")
@pytest.mark.parametrize("slug", ["cps", "dancegrpo", "ddpo", "mixgrpo", "flow-grpo"])
def test_the_loss_of_these_methods_is_grpos(slug: str) -> None:
    """PPO's ratio and clip on a step's log-prob, one advantage a rollout: what differs is how steps are drawn."""
    recipe = resolve(method=slug, values={"task": "ring"})
    named = {slot: recipe.single[slot].piece.slug for slot in ("objective.ratio", "objective.trust_region")}
    assert named == {"objective.ratio": "token", "objective.trust_region": "ppo_clip"}
    t = inputs.tensors(inputs.table("random"))
    bounds = recipe.single["objective.trust_region"].settings
    value = recipe.single["objective.trust_region"]({**t, "ratio": token(t["logp"], t["logp_old"], t["mask"])})
    ratio, low, high = (t["logp"] - t["logp_old"]).exp(), 1 - bounds["eps_low"], 1 + bounds["eps_high"]
    a = t["advantages"].unsqueeze(-1) if t["advantages"].dim() == 1 else t["advantages"]
    want = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    torch.testing.assert_close(value[t["mask"]], want[t["mask"]])
    assert clip_advantage.piece.slug == "clip_advantage" and registry.get("sampler", "ode").paper is None
