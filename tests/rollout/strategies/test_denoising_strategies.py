"""Strategies of denoising: which steps draw noise, what forks share, and that what is sampled is what is scored."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import branchgrpo as branches
from oracles import denoising as oracle
from oracles import granular_grpo as granular
from small_flow import small_flow

from coterie.build import build
from coterie.errors import RecipeError
from coterie.policies.flow.policy import FlowPolicy
from coterie.recipe import resolve
from coterie.rollout.strategies.noise_tree import noise_tree
from coterie.rollout.strategies.plain import plain
from coterie.rollout.strategies.single_noise import single_noise
from coterie.rollout.strategies.sliding_window import sliding_window, window_start
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling
from tests.e2e.conftest import DENOISES, TINY

PROMPTS = [Prompt((k,), index=k) for k in range(2)]
SEEDS = [[100 * g + k for k in range(8)] for g in range(2)]


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return small_flow()


def spec_of(steps: int = 5, **settings: Any) -> Sampling:
    return Sampling(denoising=Denoising(steps, **settings))


def follows_the_ode(policy: FlowPolicy, made: Rollouts) -> None:
    """Between states whose step is no decision stands Euler's step."""
    spec = made.sampling.denoising
    assert spec is not None
    states = made.media["states"]
    for step in range(spec.steps):
        off = ~made["mask"][:, step] if step < made["mask"].shape[1] else torch.ones(len(made), dtype=torch.bool)
        rows = off.nonzero().squeeze(-1)
        with torch.no_grad():
            at = torch.full((len(rows),), step)
            v = policy.velocity(states[rows, step], made.prompts, made["groups"][rows], at, spec)
        torch.testing.assert_close(states[rows, step + 1], states[rows, step] - v / spec.steps)


def assert_scored_as_sampled(policy: FlowPolicy, made: Rollouts) -> None:
    torch.testing.assert_close(policy.score(made)["logp"], made["logp_old"], rtol=1e-10, atol=1e-10)


@pytest.mark.oracle("mixgrpo")
@given(
    iteration=st.integers(0, 3000), steps=st.integers(3, 25), size=st.integers(1, 8), stride=st.integers(1, 3),
    every=st.integers(1, 30), left_out=st.integers(0, 2),
)  # fmt: skip
def test_where_the_window_is(iteration: int, steps: int, size: int, stride: int, every: int, left_out: int) -> None:
    places = steps - left_out - size + 1
    if places >= 1:
        first = window_start(iteration, places, stride=stride, every=every, move="forward")
        assert list(range(first, first + size)) == oracle.window(iteration, steps, size, stride, every, left_out)


@pytest.mark.oracle("mixgrpo")
def test_the_window_of_the_worked_examples() -> None:
    assert [window_start(i, 22, stride=1, every=25, move="forward") for i in (24, 60, 550)] == [0, 2, 0]
    assert {window_start(i, 22, stride=1, every=25, move="stay") for i in (0, 60, 600)} == {0}
    drawn = [window_start(i, 22, stride=1, every=25, move="random") for i in range(0, 2500)]
    assert drawn[:25] == drawn[:1] * 25 and set(drawn) == set(range(22))


@pytest.mark.oracle("mixgrpo")
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_only_the_window_draws_noise(policy: FlowPolicy, step: int) -> None:
    made = sliding_window(policy, PROMPTS, SEEDS, spec_of(), True, step, size=2, every=1)
    assert made["mask"][0].nonzero().flatten().tolist() == oracle.window(step, 5, 2, 1, 1, 1)
    assert_scored_as_sampled(policy, made)
    follows_the_ode(policy, made)


@pytest.mark.reduction("mixgrpo")
def test_a_window_of_all_steps_is_plain_sampling(policy: FlowPolicy) -> None:
    made = sliding_window(policy, PROMPTS, SEEDS, spec_of(), False, 7, size=5, leave_out=0)
    want = plain(policy, PROMPTS, SEEDS, spec_of(), False)
    assert torch.equal(made.media["states"], want.media["states"]) and torch.equal(made["logp_old"], want["logp_old"])


@pytest.mark.oracle("tempflow-grpo")
@pytest.mark.parametrize("anchors", [1, 2])
def test_forks_leave_the_odes_path_at_one_step(policy: FlowPolicy, anchors: int) -> None:
    made = single_noise(policy, PROMPTS, SEEDS, spec_of(3), True, anchors=anchors, steps=(0, 1))
    forks = 4 // anchors
    places = ([0] * forks + [1] * forks) * anchors
    assert [row.nonzero().flatten().tolist() for row in made["mask"]] == [[p] for p in places * 2]
    assert_scored_as_sampled(policy, made)
    follows_the_ode(policy, made)
    states = made.media["states"]
    assert len(torch.unique(states[:, 0], dim=0)) == 2 * anchors  # one start an anchor
    assert len(torch.unique(states[:, -1], dim=0)) == 16
    ode = plain(policy, PROMPTS, [[s[0]] for s in SEEDS], spec_of(3, sampler="ode"), False).media["states"]
    torch.testing.assert_close(states[[forks, 8 + forks], 1], ode[:, 1])


def test_forks_of_shared_noise_start_together(policy: FlowPolicy) -> None:
    made = single_noise(policy, PROMPTS, SEEDS, spec_of(3, shared_noise=True), False, anchors=2, steps=(0, 1))
    assert len(torch.unique(made.media["states"][:, 0], dim=0)) == 2


@pytest.mark.reduction("tempflow-grpo")
def test_forks_at_one_step_are_a_window_of_one(policy: FlowPolicy) -> None:
    """With shared noise, rollouts that draw noise in the first step alone are forks of one path there."""
    sampling = spec_of(3, shared_noise=True)
    forks = single_noise(policy, PROMPTS, SEEDS, sampling, False, steps=(0,))
    want = sliding_window(policy, PROMPTS, SEEDS, sampling, False, 0, size=1, move="stay")
    torch.testing.assert_close(forks.media["states"], want.media["states"])
    torch.testing.assert_close(forks["logp_old"], want["logp_old"])


@pytest.mark.oracle("granular-grpo")
@pytest.mark.parametrize("stride", [2, 3])
def test_a_fork_goes_to_the_end_in_fine_and_in_coarse_strides(policy: FlowPolicy, stride: int) -> None:
    made = single_noise(policy, PROMPTS, SEEDS, spec_of(6, shift=2.0), False, steps=(0, 2), strides=(1, stride))
    assert_scored_as_sampled(policy, made)
    assert made["parent"].tolist() == [i - i % 2 for i in range(16)]
    assert made["branch"].tolist() == [-1, 1, -1, 1, -1, 3, -1, 3] * 2
    fine = single_noise(policy, PROMPTS, [s[::2] for s in SEEDS], spec_of(6, shift=2.0), False, steps=(0, 2))
    torch.testing.assert_close(made.media["states"][::2], fine.media["states"])
    levels = oracle.schedule(6, 2.0)
    for i in range(1, 16, 2):
        k = int(made["branch"][i]) - 1
        assert torch.equal(made.media["states"][i, : k + 2], made.media["states"][i - 1, : k + 2])
        x = made.media["states"][i, k + 1]
        tail = granular.tail(levels, k, stride)
        for s, t in pairwise(tail):
            at = torch.tensor([s], dtype=torch.float64), torch.tensor([i // 8])
            with torch.no_grad():
                x = x + (t - s) * policy.model(x.unsqueeze(0), *at)[0]
        torch.testing.assert_close(made.media["states"][i, -1], x)


@pytest.mark.oracle("branchgrpo")
@pytest.mark.parametrize("splits", [(0, 1, 3), (1, 2, 4), (0, 1, 2)], ids=str)
def test_paths_fork_at_the_splits_and_nowhere_else(policy: FlowPolicy, splits: tuple[int, ...]) -> None:
    made = noise_tree(policy, PROMPTS, SEEDS, spec_of(), True, splits=splits)
    assert_scored_as_sampled(policy, made)
    states = made.media["states"]
    for g in range(2):
        for at in range(6):
            forks = sum(split < at for split in splits)
            assert len(torch.unique(states[8 * g : 8 * g + 8, at], dim=0)) == 2**forks
    for i in range(16):
        for t in range(5):  # the table says who took a decision first: they agree on it and on what came before
            first = branches.took(i, t, made["parent"].tolist(), made["branch"].tolist())
            assert first // 8 == i // 8 and torch.equal(states[i, : t + 2], states[first, : t + 2])
            same = [j for j in range(16) if torch.equal(states[i, t + 1], states[j, t + 1])]
            assert first == min(same)


@pytest.mark.reduction("branchgrpo")
def test_a_tree_that_forks_once_at_the_first_step_is_plain_sampling(policy: FlowPolicy) -> None:
    """From shared noise; and what a path draws is what its seed draws."""
    sampling = spec_of(shared_noise=True)
    made = noise_tree(policy, PROMPTS, SEEDS, sampling, False, splits=(0,), branching=8)
    want = plain(policy, PROMPTS, SEEDS, sampling, False)
    torch.testing.assert_close(made.media["states"], want.media["states"], rtol=1e-12, atol=1e-12)
    assert made["parent"].tolist() == [0] * 8 + [8] * 8 and made["branch"].tolist() == [-1, *[0] * 7] * 2


@pytest.mark.parametrize(("strategy", "settings", "told"), [
    (single_noise, {"steps": (0, 1), "strides": (1, 2, 3)}, "2 steps x 3 strides do not divide"),
    (single_noise, {"strides": (0,)}, "strides are 1 or more"),
    (noise_tree, {"splits": (1, 0)}, "ascending and from 0 to 4"),
    (noise_tree, {"splits": (0, 1)}, "make 4 leaves, and rollout.group_size is 8"),
    (single_noise, {"steps": (0, 5)}, "steps 0 to 4"),
    (single_noise, {"steps": (0, 1, 2)}, "do not divide rollout.group_size 8"),
    (sliding_window, {"size": 5}, "does not fit 5 steps"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(policy: FlowPolicy, strategy: Any, settings: dict[str, Any], told: str) -> None:
    step = {"step": 0} if strategy is sliding_window else {}
    with pytest.raises(RecipeError, match=told):
        strategy(policy, PROMPTS, SEEDS, spec_of(), False, **step, **settings)


@pytest.mark.parametrize("strategy", ["sliding_window", "single_noise", "noise_tree"])
def test_they_are_refused_where_decisions_are_tokens(strategy: str) -> None:
    with pytest.raises(RecipeError, match="drives a policy of denoising steps"):
        build(resolve(overrides=[*TINY, f"rollout.strategy={strategy}"]))
    assert build(resolve(overrides=[*TINY, *DENOISES, f"rollout.strategy={strategy}"]))


def test_the_spec_that_is_recorded_scores_them_all(policy: FlowPolicy) -> None:
    """Tables of both kinds, cut and joined."""
    parts = [
        single_noise(policy, PROMPTS, SEEDS, spec_of(3), False, steps=(0, 1)),
        noise_tree(policy, PROMPTS, SEEDS, spec_of(3), False, splits=(0, 1, 2)),
    ]
    both = Rollouts.concat([p.rows(torch.arange(3, 12)) for p in parts])
    assert_scored_as_sampled(policy, both)


def rows_run(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many states each call of the model gets, from now on."""
    seen: list[int] = []
    forward = type(policy.model).forward
    monkeypatch.setattr(type(policy.model), "forward", lambda *a: (seen.append(len(a[1])), forward(*a))[1])
    return seen


def test_what_paths_share_is_run_through_the_model_once(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one tree of 8 leaves by how many nodes they start from, in sampling and in scoring each edge."""
    seen = rows_run(policy, monkeypatch)
    made = noise_tree(policy, PROMPTS[:1], SEEDS[:1], spec_of(), False, splits=(0, 1, 3))
    assert sum(seen) == 1 + 2 + 4 + 4 + 8
    edges = made.with_columns(mask=made["mask"] & (torch.arange(5) >= made["branch"].unsqueeze(-1)))
    seen.clear()
    once = policy.score(edges)["logp"]
    assert seen == [1 + 2 + 4 + 4 + 8]
    torch.testing.assert_close(once[edges["mask"]], made["logp_old"][edges["mask"]], rtol=1e-9, atol=1e-9)
    gradients = []
    for rollouts in (edges, Rollouts(edges.prompts, {n: v for n, v in edges.columns.items() if n != "parent"},
                                     edges.sampling, edges.texts, edges.media)):  # fmt: skip
        policy.model.zero_grad()
        (policy.score(rollouts)["logp"] * torch.arange(5)).sum().backward()
        gradients.append([p.grad.clone() for p in policy.trainable_parameters() if p.grad is not None])
    assert sum(seen) == 19 + 19 + 2 + 4 + 4 + 8 + 8
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    policy.model.zero_grad(set_to_none=True)


def test_forks_of_a_step_and_starts_that_are_shared_are_run_once(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rows_run(policy, monkeypatch)
    single_noise(policy, PROMPTS[:1], SEEDS[:1], spec_of(), False, steps=(0, 2))
    path = 5 * [1]
    assert seen == [*path, 1, *4 * [4], 1, *2 * [4]]
    seen.clear()
    made = plain(policy, PROMPTS[:1], SEEDS[:1], spec_of(shared_noise=True), False)
    assert seen == [1, *4 * [8]]
    seen.clear()
    torch.testing.assert_close(policy.score(made)["logp"].detach(), made["logp_old"], rtol=1e-9, atol=1e-9)
    assert seen == [33]
