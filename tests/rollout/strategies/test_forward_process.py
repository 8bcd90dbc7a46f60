"""Learning by the forward process: draws of noise on finished samples, and the losses on them, against the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import forward_process as oracle
from oracles import inputs
from small_flow import small_flow

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import RecipeError
from coterie.objectives.losses.contrastive_match import contrastive_match
from coterie.objectives.losses.dpo import dpo
from coterie.objectives.losses.group_dpo import group_dpo
from coterie.objectives.losses.group_ranking import group_ranking
from coterie.policies.flow.policy import FlowPolicy
from coterie.recipe import resolve
from coterie.rollout.strategies.explored import contrast, explored
from coterie.rollout.strategies.renoised import renoised
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling
from tests.e2e.conftest import DENOISES, TINY

D = torch.float64
PROMPTS = [Prompt((k,), {"prompt": "ab"[k]}, k) for k in range(2)]
SEEDS = [[100 * g + k for k in range(4)] for g in range(2)]
ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return small_flow()


def sampled(policy: FlowPolicy, **spec: Any) -> Rollouts:
    return renoised(policy, PROMPTS, SEEDS, Sampling(denoising=Denoising(5, **spec)), False, draws=3)


@pytest.mark.oracle("awm", "diffusion-nft", "gdro-flow")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_decision_is_the_error_at_a_draw_of_noise(policy: FlowPolicy, guidance: float) -> None:
    """Samples are the ODE's, guided; draws are matched without guidance; levels lie one in each part."""
    made = sampled(policy, guidance=guidance, keep_means=True)
    spec = Denoising(5, guidance=guidance, sampler="ode")
    ode = policy.rollout(PROMPTS, SEEDS, Sampling(denoising=spec)).media["states"][:, -1]
    np.testing.assert_allclose(np.stack(made.texts), ode, rtol=1e-9)
    level, target = made["step_size"], made.media["target"]
    assert made["mask"].all() and made["mask"].shape == (8, 3)
    places = made.media["at"]  # five steps in three parts: 0, 1; 1, 2, 3; 3, 4
    assert set(places[:, 0].tolist()) == {0, 1} and set(places[:, 1].tolist()) == {1, 2, 3}
    assert set(places[:, 2].tolist()) == {3, 4}
    torch.testing.assert_close(level, 1 - places.to(D) / 5)
    for row, k in ((0, 0), (5, 2)):
        s = float(level[row, k])
        n = target[row, k] + ode[row]
        x = (1 - s) * ode[row] + s * n
        torch.testing.assert_close(x, made.media["states"][row, k])
        with torch.no_grad():
            v = policy.model(x.unsqueeze(0), level[row, k].view(1), torch.tensor([row // 4]))[0]
        want = -oracle.square(v.tolist(), target[row, k].tolist())
        assert float(made["logp_old"][row, k]) == pytest.approx(want, rel=1e-9)
        torch.testing.assert_close(made.media["mean_old"][row, k], v)
    again = policy.score(made.rows(torch.tensor([6, 1])), {"logp", "mean_gap"})
    torch.testing.assert_close(again["logp"].detach(), made["logp_old"][[6, 1]])
    assert float(again["mean_gap"].detach().abs().max()) < 1e-20
    summed = sampled(policy, guidance=guidance, reduce="sum")["logp_old"]
    torch.testing.assert_close(summed, 3 * made["logp_old"])


def test_distances_of_velocities() -> None:
    policy, other = small_flow(), small_flow(2)
    made = sampled(policy, keep_means=True)
    made.media["mean_ref"] = other.means(made)
    before = made.media["mean_old"].clone()
    with torch.no_grad():
        policy.model.leave.bias += 0.3
    got = policy.score(made, {"kl_ref", "mean_gap"})
    v = policy.means(made)
    torch.testing.assert_close(got["kl_ref"].detach(), ((v - made.media["mean_ref"]) ** 2).mean(-1))
    torch.testing.assert_close(got["mean_gap"].detach(), ((v - before) ** 2).mean(-1))


@pytest.mark.oracle("diffusion-nft", "sol-rl")
@given(seed=st.integers(0, 300), beta=st.sampled_from([1.0, 0.5, 0.1]))
def test_the_contrastive_loss_is_the_oracles(seed: int, beta: float) -> None:
    """Made of squared errors and their distance, it is that of the velocities; gradients are numeric ones."""
    rng = np.random.default_rng(seed)
    v, old, target = rng.standard_normal((3, 4))
    level, advantage = rng.uniform(0.02, 1.0), rng.uniform(-7, 7)
    leaf = torch.tensor(v, requires_grad=True)

    def value(x: torch.Tensor) -> torch.Tensor:
        o, t = torch.from_numpy(old), torch.from_numpy(target)
        columns = [-((x - t) ** 2).mean(), -((o - t) ** 2).mean(), ((x - o) ** 2).mean()]
        sizes = torch.tensor([[advantage]], dtype=D), torch.tensor([[level]], dtype=D)
        return contrastive_match(*(c.view(1, 1) for c in columns), *sizes, ONE, beta=beta).sum()

    got = value(leaf)
    assert float(got.detach()) == pytest.approx(oracle.contrastive(v, old, target, level, advantage, beta), rel=1e-8)
    got.backward()
    assert leaf.grad is not None
    share = min(max(advantage / 10 + 0.5, 0.0), 1.0)
    want = np.zeros(4)  # of level^2 E / (level rms), the divisor a number
    for sign, weight in ((1, share), (-1, 1 - share)):
        error = old + sign * beta * (v - old) - target
        want += 5 * weight / beta * level * 2 * sign * beta * error / 4 / math.sqrt((error**2).mean())
    np.testing.assert_allclose(leaf.grad, want, rtol=1e-6, atol=1e-9)


@pytest.mark.oracle("diffusion-nft", "awm")
def test_the_worked_examples() -> None:
    """NFT: x0 [0,1], v [.4,-.2], v_old [.2,-.1], level .5, A 2.5: 1.9643 by the size of the error, 1.9508 by its root
    mean square. AWM: v [.5,.5], n [1,0], x0 0: -.25, weighed by t = .5 -.125."""
    example = ([0.4, -0.2], [0.2, -0.1], [1.0, -1.0], 0.5, 2.5)
    assert oracle.contrastive(*example, by="size") == pytest.approx(1.9643, abs=5e-5)
    assert oracle.contrastive(*example) == pytest.approx(1.9508, abs=5e-5)
    assert 0.5 * -oracle.square([0.5, 0.5], [1.0, 0.0]) == -0.125


@pytest.mark.reduction("diffusion-nft", "sol-rl")
def test_without_an_advantage_it_stays_where_it_is() -> None:
    """A = 0 and v = v_old: towards and away cancel; A at the bound is the plain regression."""
    policy = small_flow()
    made = sampled(policy, keep_means=True)
    for advantage, still in ((0.0, True), (5.0, False)):
        policy.model.zero_grad()
        scores = policy.score(made, {"logp", "mean_gap"})
        a = torch.full((8,), advantage, dtype=D)
        columns = (scores["logp"], made["logp_old"], scores["mean_gap"], a, made["step_size"], made["mask"])
        contrastive_match(*columns).sum().backward()
        size = max(float(p.grad.abs().max()) for p in policy.trainable_parameters() if p.grad is not None)
        assert (size < 1e-10) is still


@pytest.mark.oracle("gdro-flow")
@pytest.mark.parametrize("temperature", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_ranking_loss_is_the_oracles(kind: str, temperature: float) -> None:
    n = inputs.table(kind)
    if kind == "huge_ratios":
        n["logp"] = np.clip(n["logp"], -20, 20)
    t = inputs.tensors(n)
    names = ("logp", "logp_ref", "rewards", "groups", "weights", "mask")
    got = group_ranking(*(t[c] for c in names), beta=0.7, temperature=temperature, anchor=0.4)
    for group in set(n["groups"].tolist()):
        rows = [i for i in range(len(got)) if n["groups"][i] == group]
        live = [i for i in rows if n["mask"][i].any() and n["weights"][i] != 0]
        s, errors = [], []
        for i in live:
            places = np.nonzero(n["mask"][i])[0]
            s.append(0.7 * float(np.mean([n["logp"][i, p] - n["logp_ref"][i, p] for p in places])))
            errors.append(-float(np.mean([n["logp"][i, p] for p in places])))
        want = oracle.ranking(s, [n["rewards"][i] for i in live], temperature, 0.4, errors)
        np.testing.assert_allclose(got[rows], want, rtol=1e-8, atol=1e-10)


@pytest.mark.oracle("gdro-flow")
def test_the_worked_example_of_gdro() -> None:
    logp, ref = -torch.tensor([[0.30], [0.28], [0.35]], dtype=D), -torch.tensor([[0.29], [0.30], [0.33]], dtype=D)
    rewards, on = torch.tensor([0.2, 0.9, 0.5], dtype=D), torch.ones(3, 1, dtype=torch.bool)
    rest = (logp, ref, rewards, torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=D), on)
    np.testing.assert_allclose(group_ranking(*rest, anchor=0.0), [1.59485] * 3, atol=5e-6)
    np.testing.assert_allclose(group_ranking(*rest), [1.73485] * 3, atol=5e-6)


@pytest.mark.reduction("gdro-flow")
@given(seed=st.integers(0, 300))
def test_of_two_it_is_dpo(seed: int) -> None:
    """Two rollouts, temperature 0, no anchor."""
    t = inputs.tensors(inputs.table("random", seed))
    groups, ones = torch.arange(12) // 2, torch.ones(12, dtype=D)
    mask = t["mask"] | (torch.arange(7) == 0)
    two = (t["logp"], t["logp_ref"], t["rewards"], groups, ones, mask)
    got = group_ranking(*two, beta=0.3, temperature=0.0, anchor=0.0, length="sum")
    torch.testing.assert_close(got, dpo(*two, beta=0.3, length="sum"))


def test_gradients() -> None:
    t = inputs.tensors(inputs.table("random"))
    leaf = t["logp"].clone().requires_grad_()
    rest = (t["logp_ref"], t["rewards"], t["groups"], t["weights"], t["mask"])
    assert torch.autograd.gradcheck(lambda x: group_ranking(x, *rest, beta=0.5, temperature=0.3), [leaf])
    wild = torch.tensor([[14.0], [-14.0], [-torch.inf]], requires_grad=True)
    on = torch.tensor([[True], [True], [False]])
    zero, groups = torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)
    out = group_ranking(wild, zero, torch.arange(3.0), groups, torch.ones(3), on)
    out.sum().backward()
    assert out.isfinite().all() and wild.grad is not None and wild.grad.isfinite().all()
    none = group_ranking(wild, zero, torch.arange(3.0), groups, torch.zeros(3), on)
    assert (none == 0).all()


@pytest.mark.oracle("gdpo-sr")
def test_group_dpo_of_draws_is_the_papers(policy: FlowPolicy) -> None:
    """-log sigmoid(-2500 sum_i A_i (|v - target|^2 - |v_ref - target|^2)), at the same noise; and its example."""
    made, other = sampled(policy), small_flow(2)
    with torch.no_grad():
        logp, ref = policy.score(made)["logp"], other.score(made)["logp"]
    a = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=D) * 1e-4
    got = group_dpo(logp, ref, a, made["groups"], torch.ones(8, dtype=D), made["mask"], beta=2500.0)
    for g in range(2):
        inside = sum(float(a[i]) * float((-logp[i] + ref[i]).mean()) for i in range(4 * g, 4 * g + 4))
        np.testing.assert_allclose(got[4 * g : 4 * g + 4], math.log1p(math.exp(2500 * inside)), rtol=1e-8)
    err, base = (-torch.tensor([e], dtype=D).T for e in ([0.010, 0.01, 0.012], [0.0105, 0.01, 0.0115]))
    one = (torch.tensor([1.0, 0.0, -1.0], dtype=D), torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=D))
    value = group_dpo(err, base, *one, torch.ones(3, 1, dtype=torch.bool), beta=2500.0)
    np.testing.assert_allclose(value, [0.07889] * 3, atol=5e-6)


@pytest.mark.oracle("sol-rl")
def test_the_best_and_the_worst_are_kept() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.5, 0.3, 0.7, 0.2]])
    assert sorted(contrast(rewards, 4).tolist()) == [0, 1, 4, 5] == oracle.contrast(rewards[0].tolist(), 2)
    assert sorted(contrast(rewards.repeat(2, 1), 3).tolist()) == [0, 1, 4, 6, 7, 10]
    assert sorted(contrast(torch.zeros(1, 5), 5).tolist()) == list(range(5))


@pytest.mark.oracle("sol-rl")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_noises_are_drawn_again_in_full(dtype: str) -> None:
    """The samples trained on are the full policy's, from candidates that a cheap one ranked."""
    policy, asked = small_flow(), []
    if dtype == "bfloat16":
        policy.model.float()

    def grade(rows: list[Any], samples: list[Any]) -> torch.Tensor:
        asked.append((rows, samples))
        return torch.tensor([float(s[0]) for s in samples])

    sampling = Sampling(denoising=Denoising(6))
    made = explored(policy, PROMPTS, SEEDS, sampling, False, grade, candidates=9, steps=2, dtype=dtype)  # type: ignore[arg-type]
    rows, samples = asked[0]
    assert [r["prompt"] for r in rows] == ["a"] * 9 + ["b"] * 9 and len(asked) == 1 and len(made) == 8
    cheap = torch.tensor([float(s[0]) for s in samples]).view(2, 9)
    for g in range(2):
        assert sorted(cheap[g][contrast(cheap[g : g + 1], 4)].tolist())[:2] == sorted(cheap[g].tolist())[:2]
    torch.testing.assert_close(policy.score(made)["logp"].detach(), made["logp_old"], rtol=1e-5, atol=1e-6)
    assert made.media["states"].dtype == policy.dtype


@pytest.mark.reduction("sol-rl")
def test_with_as_many_candidates_as_rollouts_all_are_kept() -> None:
    policy = small_flow()
    sampling = Sampling(denoising=Denoising(6))

    def grade(rows: list[Any], samples: list[Any]) -> torch.Tensor:
        return torch.tensor([float(s[0]) for s in samples])

    made = explored(policy, PROMPTS, SEEDS, sampling, False, grade, candidates=4, steps=6, dtype="float32")
    again = torch.stack([torch.from_numpy(s) for s in made.texts])[:, 0].view(2, 4)
    assert (again.diff(dim=-1) >= 0).all()  # the cheap policy is the full one, and its order is theirs
    with pytest.raises(RecipeError, match="3 candidates do not hold a group of 4"):
        explored(policy, PROMPTS, SEEDS, sampling, False, grade, candidates=3)


def test_pieces_that_follow_a_path_are_refused() -> None:
    with pytest.raises(RecipeError, match="follows the steps of a path"):
        build(resolve(method="awm", overrides=[*TINY, *DENOISES, "credit.baseline=value_anchored"]))


@pytest.mark.reduction("awm")
def test_the_first_ratio_of_matching_is_one() -> None:
    run = build(resolve(method="awm", overrides=[*TINY, *DENOISES, "denoise.guidance=1.5"]))
    batch = collect(run, 0, Clock())
    assert batch is not None
    logp = run.policy.score(batch)["logp"].detach()
    torch.testing.assert_close(logp, batch["logp_old"], rtol=1e-5, atol=1e-5)
