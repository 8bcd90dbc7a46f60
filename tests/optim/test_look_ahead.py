"""N-PG-IGT and HARPG against their oracles; of a quadratic both know the gradient exactly."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.n_pg_igt import harpg, n_pg_igt
from torch import Tensor

from coterie.optim import HARPG, NPGIGT
from coterie.streams import stream
from tests.optim.problems import CURVATURE, OPTIMUM, closure_of, minimise, numpy, quadratic, rosenbrock


def bumpy(w: Tensor) -> Tensor:
    w = w.flatten()
    return (w**4).sum() + (w[:-1] * w[1:]).sin().sum()


def bumpy_gradient(w: np.ndarray) -> np.ndarray:
    g = 4 * w**3
    for i in range(len(w) - 1):
        slope = np.cos(w[i] * w[i + 1])
        g[i] += slope * w[i + 1]
        g[i + 1] += slope * w[i]
    return g


def take(make: Any, steps: int, **settings: Any) -> list[np.ndarray]:
    w, out = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)), []
    optimizer = make([w], **settings)
    for _ in range(steps):
        optimizer.step(closure_of(bumpy, [w], optimizer))
        out.append(numpy(w).flatten())
    return out


@pytest.mark.oracle("n-pg-igt")
@pytest.mark.parametrize("eta", [0.05, 0.5, 1.0])
def test_n_pg_igt_is_the_oracle(eta: float) -> None:
    want = n_pg_igt(np.linspace(-1, 1, 6), bumpy_gradient, 8, 0.05, eta)
    np.testing.assert_allclose(take(NPGIGT, 8, lr=0.05, eta=eta), want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("harpg")
@pytest.mark.parametrize("eta", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("radius", [0.01, 0.5])
def test_harpg_is_the_oracle(eta: float, normalise: bool, radius: float) -> None:
    want = harpg(
        np.linspace(-1, 1, 6), bumpy_gradient, lambda step: random.Random(stream(5, "segment", step)).random(), 8,
        0.05, eta, radius, normalise,
    )  # fmt: skip
    got = take(HARPG, 8, lr=0.05, eta=eta, radius=radius, normalise=normalise, seed=5)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-11)


@pytest.mark.oracle("n-pg-igt", "harpg")
@pytest.mark.parametrize("make", [NPGIGT, HARPG])
def test_the_worked_example(make: Any) -> None:
    w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    minimise(make([w], 0.1, eta=0.5), lambda x: 0.5 * (x**2).sum() - x.sum(), [w], 2)
    np.testing.assert_allclose(numpy(w), [0.141421, 0.141421], atol=5e-7)


@pytest.mark.reduction("n-pg-igt", "harpg")
@given(eta=st.floats(0.05, 1.0), lr=st.floats(1e-4, 0.3), seed=st.integers(0, 1000))
def test_of_a_quadratic_the_momentum_is_the_gradient(eta: float, lr: float, seed: int) -> None:
    """However old it is: what is carried along makes up for it."""
    start = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for make in (NPGIGT, HARPG):
        w = torch.nn.Parameter(start.clone())
        optimizer = make([w], lr, eta=eta)
        for _ in range(6):
            at = w.detach().clone()
            optimizer.step(closure_of(quadratic, [w], optimizer))
            torch.testing.assert_close(
                optimizer.state[w]["direction"], CURVATURE * (at - OPTIMUM), rtol=1e-6, atol=1e-8
            )


@pytest.mark.reduction("n-pg-igt", "harpg")
@given(lr=st.floats(1e-4, 0.3))
def test_with_eta_1_it_is_normalised_descent_or_plain_descent(lr: float) -> None:
    normalised, plain = np.linspace(-1, 1, 6), np.linspace(-1, 1, 6)
    runs = take(NPGIGT, 3, lr=lr, eta=1.0), take(HARPG, 3, lr=lr, eta=1.0)
    flat = take(HARPG, 3, lr=lr, eta=1.0, normalise=False)
    for i in range(3):
        g = bumpy_gradient(normalised)
        normalised = normalised - lr * g / np.linalg.norm(g)
        plain = plain - lr * bumpy_gradient(plain)
        for run in runs:
            np.testing.assert_allclose(run[i], normalised, rtol=1e-9, atol=1e-12)
        if np.abs(plain).max() < 5:
            np.testing.assert_allclose(flat[i], plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("make", [NPGIGT, HARPG])
def test_noise_is_averaged_without_lag(make: Any) -> None:
    """Gradients with noise ten times their size: the momentum is nearer the gradient than one of them is, and nearer
    than a plain moving average, which lags behind."""
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.full((6,), 3.0, dtype=torch.float64))
    optimizer = make([w], 0.05, eta=0.1)
    average, ours, theirs = torch.zeros(6, dtype=torch.float64), 0.0, 0.0
    for step in range(200):
        exact = CURVATURE * (w.detach() - OPTIMUM)
        noise = torch.randn(6, generator=generator, dtype=torch.float64)  # one batch: the same at every point

        def loss(x: Tensor, noise: Tensor = noise) -> Tensor:
            return quadratic(x) + noise @ x

        optimizer.step(closure_of(loss, [w], optimizer))
        average = (exact + noise) if step == 0 else 0.9 * average + 0.1 * (exact + noise)
        if step >= 20:
            ours += float((optimizer.state[w]["direction"] - exact).norm())
            theirs += float((average - exact).norm())
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("make", [NPGIGT, HARPG])
def test_it_goes_down_the_curved_valley(make: Any) -> None:
    w = torch.nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    minimise(make([w], 0.02, eta=0.5), rosenbrock, [w], 1500, lr=lambda done: 1 - done)
    assert float(rosenbrock(w.detach())) < 0.01


@pytest.mark.parametrize("make", [NPGIGT, HARPG])
def test_where_there_is_no_gradient_it_stays(make: Any) -> None:
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    minimise(make([w], 0.1), lambda x: 0.0 * x.sum(), [w], 3)
    assert torch.equal(w.detach(), torch.ones(3, dtype=torch.float64))
