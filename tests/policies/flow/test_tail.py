"""MixGRPO-Flash: fewer steps after the window, by DPM-Solver++ (2M)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_flow import small_flow
from torch import Tensor

from coterie.errors import RecipeError
from coterie.policies.flow import tail
from coterie.policies.flow.steps import noise_levels
from coterie.rollout.strategies.sliding_window import sliding_window
from coterie.rollouts import Denoising, Prompt, Sampling

PROMPTS = [Prompt((k,), index=k) for k in range(2)]
SEEDS = [[100 * g + k for k in range(3)] for g in range(2)]


def tensor(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def levels(spec: Denoising) -> Tensor:
    return noise_levels(spec.steps, spec.shift, torch.float64)


def oracle(x: float, sigmas: list[float], foresee: Callable[[float, float], float]) -> float:
    """The solver a number at a time, in log-SNRs, as its paper writes it."""
    snr = [math.log((1 - s) / s) if 0 < s < 1 else math.inf for s in sigmas]
    known: list[float] = []
    for i in range(len(sigmas) - 1):
        known.append(foresee(x, sigmas[i]))
        h = snr[i + 1] - snr[i]
        d = known[-1]
        if i > 0 and i + 2 < len(sigmas):
            r = (snr[i] - snr[i - 1]) / h
            d = (1 + 1 / (2 * r)) * known[-1] - 1 / (2 * r) * known[-2]
        x = sigmas[i + 1] / sigmas[i] * x - (1 - sigmas[i + 1]) * (math.exp(-h) - 1) * d
    return x


@pytest.mark.oracle("mixgrpo")
def test_the_worked_example_of_first_order() -> None:
    made = tail.advance(tensor(1.0), tensor(0.6), tensor(0.7), tensor(0.5), None)
    assert float(made) == pytest.approx(0.885714, abs=1e-6)


@pytest.mark.oracle("mixgrpo")
@pytest.mark.parametrize(
    ("steps", "first", "share", "shift"), [(10, 3, 0.4, 1.0), (25, 5, 0.4, 3.0), (6, 5, 0.4, 1.0), (9, 2, 0.99, 2.0)]
)
def test_the_tail_is_the_solver_on_shifted_levels(steps: int, first: int, share: float, shift: float) -> None:
    spec = Denoising(steps, shift=shift, stochastic=(first - 2, first - 1), tail=share)
    few = max(1, int((steps - first) * share))
    assert tail.count(spec) == few
    even = [(steps - first) / steps * (1 - k / few) for k in range(few + 1)]
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in even]

    def velocity(x: Tensor, step: Tensor, fine: Denoising) -> Tensor:
        return torch.sin(3 * x) - levels(fine)[step].unsqueeze(-1)

    made = tail.finish(tensor(0.8), spec, first, velocity, levels)
    want = oracle(0.8, sigmas, lambda x, s: x - s * (math.sin(3 * x) - s))
    assert float(made) == pytest.approx(want, abs=1e-12)


def test_the_error_falls_with_the_square_of_the_steps() -> None:
    """Data N(1, 1/4), whose flow leads z standard deviations to z standard deviations."""

    def velocity(x: Tensor, step: Tensor, fine: Denoising) -> Tensor:
        s = levels(fine)[step].unsqueeze(-1)
        variance = (1 - s) ** 2 / 4 + s**2
        return -1 + (s - (1 - s) / 4) / variance * (x - (1 - s))

    def error(steps: int) -> float:
        """From level 1/2 in half of `steps`."""
        spec = Denoising(2 * steps, stochastic=(steps - 1,), tail=0.5)
        start = 0.5 + 1.3 * math.sqrt(1 / 16 + 1 / 4)
        return abs(float(tail.finish(tensor(start), spec, steps, velocity, levels)) - (1 + 1.3 * 0.5))

    errors = [error(n) for n in (64, 128, 256, 512)]
    assert all(after < before / 3 for before, after in pairwise(errors)), errors


@pytest.mark.oracle("mixgrpo")
@pytest.mark.parametrize("step", [0, 2])
def test_a_window_with_a_short_tail_is_scored_as_it_was_sampled(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    policy, calls = small_flow(), []
    own = policy._velocity

    def counting(x: Tensor, *rest: object) -> Tensor:
        calls.append(len(x))
        return own(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "_velocity", counting)
    sampling = Sampling(denoising=Denoising(10))
    whole = sliding_window(policy, PROMPTS, SEEDS, sampling, False, step, size=2, every=1)
    assert len(calls) == 10
    calls.clear()
    made = sliding_window(policy, PROMPTS, SEEDS, sampling, False, step, size=2, every=1, tail=0.4)
    assert len(calls) == step + 2 + int((10 - step - 2) * 0.4)
    assert torch.equal(made["mask"], whole["mask"])
    states, want = made.media["states"], whole.media["states"]
    assert states.shape == want.shape and torch.equal(states[:, : step + 3], want[:, : step + 3])
    torch.testing.assert_close(policy.score(made)["logp"], made["logp_old"], rtol=1e-10, atol=1e-10)
    assert not torch.equal(states[:, -1], want[:, -1])


@pytest.mark.reduction("mixgrpo")
def test_a_tail_of_all_steps_is_eulers() -> None:
    policy, sampling = small_flow(), Sampling(denoising=Denoising(5))
    made = sliding_window(policy, PROMPTS, SEEDS, sampling, False, 0, size=2, tail=1.0)
    want = sliding_window(policy, PROMPTS, SEEDS, sampling, False, 0, size=2)
    assert torch.equal(made.media["states"], want.media["states"])
    assert tail.count(replace(Denoising(5), tail=0.4)) == 0  # all steps draw noise: nothing is after them
    with pytest.raises(RecipeError, match="tail"):
        sliding_window(policy, PROMPTS, SEEDS, sampling, False, 0, size=2, tail=0.0)
