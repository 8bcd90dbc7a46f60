"""FlowSE-GRPO: a model that is told a signal, its task, its step, and its reward of several metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import flowse_grpo as oracle
from oracles import inputs
from small_flow import small_flow

from coterie.api import start
from coterie.build import build_task
from coterie.credit.group_norm import group_norm
from coterie.errors import PolicyError, RecipeError
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowSpec
from coterie.recipe import resolve
from coterie.rewards.shaping.unit_spread import unit_spread
from coterie.rollout.samplers.flow_sde import flow_sde
from coterie.rollouts import Denoising, Prompt, Sampling
from coterie.tasks.base import validate
from coterie.tasks.tones import si_sdr
from tests.e2e.conftest import DENOISES, TINY

D = torch.float64
SIGNAL = [*TINY, *DENOISES, "task={tones: {length: 8, train: 40, held_out: 12}}", "rollout.strategy.size=2"]


@pytest.mark.oracle("flowse-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_reward_is_the_oracles(kind: str) -> None:
    n = inputs.table(kind)
    weights, metrics = n["reward_weights"], n["components"]
    n["rewards"] = sum(weights[k] * metrics[k] for k in metrics)
    t = inputs.tensors(n)
    got = unit_spread(t["rewards"], t["components"], weights)
    want = oracle.rewards([metrics[k].tolist() for k in metrics], [weights[k] for k in metrics])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(unit_spread(t["rewards"] + 2.0, t["components"], weights), got + 2.0)


@pytest.mark.oracle("flowse-grpo")
def test_the_worked_examples() -> None:
    metrics = {"a": torch.tensor([2.0, 3.0, 4.0], dtype=D), "b": torch.tensor([0.5, 0.5, 0.8], dtype=D)}
    got = unit_spread(metrics["a"] + metrics["b"], metrics, {"a": 1.0, "b": 1.0})
    np.testing.assert_allclose(got, [5.985, 7.210, 10.556], atol=6e-4)
    a = group_norm(got, torch.zeros(3, dtype=torch.long), ddof=0)
    np.testing.assert_allclose(a, [-1.0, -0.366, 1.366], atol=1e-3)
    mean, std = oracle.step([1.0, 0.0], [0.5, 0.5], 0.3, 0.1, 0.4)
    np.testing.assert_allclose([*mean, std], [1.0273, 0.0540, 0.19322], atol=6e-5)


@pytest.mark.reduction("flowse-grpo")
@given(t=st.floats(0.05, 0.9), part=st.floats(0.01, 0.9), a=st.floats(0.0, 1.0))
def test_its_step_is_flow_grpos_in_the_other_direction(t: float, part: float, a: float) -> None:
    """t = 1 - sigma, v = -v."""
    dt = part * (1 - t)
    want, want_std = oracle.step([1.0, -0.4], [0.5, 0.2], t, dt, a)
    x, v = torch.tensor([[1.0, -0.4]], dtype=D), -torch.tensor([[0.5, 0.2]], dtype=D)
    sigma, after = (torch.tensor([[s]], dtype=D) for s in (1 - t, 1 - t - dt))
    mean, std = flow_sde(x, v, sigma, after, torch.tensor(0.99, dtype=D), noise=a)
    np.testing.assert_allclose(mean[0], want, rtol=1e-9, atol=1e-12)
    assert float(std) == pytest.approx(want_std, rel=1e-9, abs=1e-12)


@pytest.mark.reduction("flowse-grpo")
@given(seed=st.integers(0, 200), weight=st.floats(0.1, 5.0))
def test_of_one_metric_the_spread_cancels(seed: int, weight: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    one = {"a": t["rewards"]}
    got = unit_spread(weight * t["rewards"], one, {"a": weight})
    want = group_norm(t["rewards"], t["groups"], ddof=0, eps=0.0)
    torch.testing.assert_close(group_norm(got, t["groups"], ddof=0, eps=0.0), want, rtol=1e-9, atol=1e-11)


def test_the_task() -> None:
    """The verifier accepts what is clean and rejects what was told; SI-SDR is blind to scale, `level` is not."""
    task = build_task(resolve(values={"task": {"tones": {"train": 60, "held_out": 20}}}))
    assert validate(task).ok and task.reference is not None
    row = task.train[0]
    clean, told = task.reference(row), np.array([float(n) for n in row["prompt"].split()])
    assert si_sdr(told, clean) == pytest.approx(oracle.si_sdr(told.tolist(), clean.tolist()), abs=1e-6)
    assert si_sdr(3 * told + 1, clean) == pytest.approx(si_sdr(told, clean)) and si_sdr(clean, clean) == 30.0
    assert -3.5 < row["told_si_sdr"] < 6.5
    sdr, spectrum, level = (r.fn for r in task.rewards)
    assert level(0.1 * clean, row) < -2 < level(clean, row) and sdr(0.1 * clean, row) == sdr(clean, row) == 3.0
    assert spectrum(told, row) < spectrum(clean, row) == 0.0
    assert task.train[1]["clean"] != row["clean"] != task.held_out[0]["clean"]
    with pytest.raises(RecipeError, match="8 samples or more"):
        build_task(resolve(values={"task": {"tones": {"length": 4}}}))


def test_a_policy_is_told_a_sample(tmp_path: Path) -> None:
    """Prompts are numbers and come back as they were; the velocity depends on them; a folder keeps that."""
    policy = small_flow(0, ["signal"], told=True)
    prompts = [Prompt(policy.encode(text), index=i) for i, text in enumerate(["0.5 -0.25 1", "0 0 0"])]
    assert policy.decode(prompts[0].tokens) == "0.5 -0.25 1"
    made = policy.rollout(prompts, [[1, 2], [1, 2]], Sampling(denoising=Denoising(4, guidance=1.5)))
    assert not torch.allclose(made.media["states"][0, -1], made.media["states"][2, -1])
    torch.testing.assert_close(policy.score(made)["logp"].detach(), made["logp_old"])
    x, level, group = torch.randn(2, 3, dtype=D), torch.full((2,), 0.5, dtype=D), torch.tensor([0, 0])
    told = torch.tensor([[0.5, -0.25, 1.0]], dtype=D).expand(2, 3)
    with torch.no_grad():
        want = policy.model(x, level, group, told)
        got = policy.velocity(x, prompts, group, torch.tensor([2, 2]), Denoising(4))
    torch.testing.assert_close(got, want)
    policy.save(tmp_path)
    again = FlowPolicy.load(FlowSpec(name=str(tmp_path), device="cpu"))
    torch.testing.assert_close(again.score(made)["logp"], policy.score(made)["logp"])
    for wrong in ("0.5 1", "a b c", "1 2 99"):
        with pytest.raises(PolicyError, match="is 3 numbers from -20 to 20"):
            policy.encode(wrong)


def test_it_learns_to_hear_what_it_is_told() -> None:
    """Flow matching on pairs: the error falls below that of a model that is told nothing."""
    policy = small_flow(0, ["signal"], told=True)
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((64, 3)).round(3)
    prompts = [policy.encode(" ".join(map(str, c))) for c in clean]
    silent = [policy.encode("0 0 0")] * 64
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 1e-2)
    for seed in range(120):
        loss = policy.sft_loss(prompts, [policy.encode_completion(c) for c in clean], seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    done = [policy.encode_completion(c) for c in clean]
    assert float(policy.sft_loss(prompts, done, 999).detach()) < 0.6 * float(
        policy.sft_loss(silent, done, 999).detach()
    )


def test_a_run_on_tones(tmp_path: Path) -> None:
    result = start(
        resolve(method="flowse-grpo", overrides=[*SIGNAL, "warm_start.steps=5"]), tmp_path / "run", quiet=True
    )
    assert {"spread/si_sdr", "spread/level", "reward/spectrum", "kl/ref", "window/start"} <= result.last.keys()
    assert sorted(p.name for p in (result.path / "samples").iterdir()) == ["step-000000.png", "step-000002.png"]
