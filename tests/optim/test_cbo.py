"""Consensus-based optimisation against its oracle, its limits, and a function full of local minima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.cbo import cbo

from coterie.optim import CBO
from coterie.optim.replay import directions
from coterie.streams import stream
from tests.optim.problems import minimise, numpy, rastrigin

START = torch.linspace(-1, 1, 4, dtype=torch.float64)


def bumpy(w: np.ndarray) -> float:
    return float((np.cos(w) ** 2).sum() + (w**4).sum() + w[0] * w[-1])


def make(loss: Callable[[np.ndarray], float] = bumpy, **settings: Any) -> tuple[CBO, list[torch.nn.Parameter], Any]:
    """Two tensors that are one vector of four."""
    parts = [torch.nn.Parameter(START[:1].clone()), torch.nn.Parameter(START[1:].clone())]
    return CBO(parts, **settings), parts, lambda: loss(np.concatenate([numpy(p) for p in parts]))


def whole(parts: list[torch.nn.Parameter]) -> np.ndarray:
    return np.concatenate([numpy(p) for p in parts])


def cloud(optimizer: CBO, parts: list[torch.nn.Parameter]) -> np.ndarray:
    return np.concatenate([optimizer.state[p]["particles"].numpy() for p in parts], 1)


def normal(seed: int, *keys: Any) -> np.ndarray:
    like = [torch.empty(n, dtype=torch.float64) for n in (1, 3)]
    return np.concatenate([z.numpy() for z in directions(like, stream(seed, *keys))])


@pytest.mark.oracle("cbo")
@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"alpha": 1e4}, {"sigma": 0.0}, {"lr": 1.0, "particles": 2}])
def test_it_is_the_oracle(settings: dict[str, Any], noise: str) -> None:
    settings = {"lr": 0.2, "particles": 5, "alpha": 3.0, "sigma": 0.7} | settings
    optimizer, parts, closure = make(seed=4, spread=0.3, noise=noise, **settings)
    start = np.stack(
        [numpy(START)] + [numpy(START) + 0.3 * normal(4, "particle", i) for i in range(1, settings["particles"])]
    )
    del settings["particles"]
    want, clouds = cbo(start, bumpy, lambda step, i: normal(4, "kick", step, i), 6, noise=noise, **settings)
    for consensus, particles in zip(want, clouds, strict=True):
        optimizer.step(closure)
        np.testing.assert_allclose(whole(parts), consensus, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(cloud(optimizer, parts), particles, rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("cbo")
@given(seed=st.integers(0, 2**31), lr=st.floats(0, 1))
def test_without_kicks_the_particles_contract_towards_what_they_agree_on(seed: int, lr: float) -> None:
    """alpha 0 agrees on the mean, which stays; a large alpha on the best particle; after a step of 1 all are there."""
    optimizer, parts, closure = make(sigma=0.0, alpha=0.0, lr=lr, seed=seed, spread=1.0)
    optimizer.step(closure)
    first, mean = cloud(optimizer, parts), whole(parts)
    np.testing.assert_allclose(first.mean(0), mean, atol=1e-12)
    optimizer.step(closure)
    np.testing.assert_allclose(whole(parts), mean, atol=1e-12)
    np.testing.assert_allclose(cloud(optimizer, parts) - mean, (1 - lr) * (first - mean), atol=1e-12)

    optimizer, parts, closure = make(sigma=0.0, alpha=1e12, lr=1.0, seed=seed, spread=1.0)
    start = np.stack([numpy(START)] + [numpy(START) + normal(seed, "particle", i) for i in range(1, 8)])
    optimizer.step(closure)
    np.testing.assert_allclose(whole(parts), min(start, key=bumpy), atol=1e-12)
    np.testing.assert_allclose(cloud(optimizer, parts), np.tile(whole(parts), (8, 1)), atol=1e-12)


@pytest.mark.reduction("cbo")
@given(shift=st.floats(-1e6, 1e6))
def test_a_constant_in_the_loss_is_nothing_to_it(shift: float) -> None:
    ends = []
    for by in (0.0, round(shift)):
        optimizer, parts, closure = make(lambda w, by=by: bumpy(w) + by, alpha=2.0, spread=0.5)
        optimizer.step(closure)
        ends.append(whole(parts))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_it_finds_the_least_of_many_minima(noise: str) -> None:
    """Rastrigin from (3.2, -2.7), where descent ends in the minimum next to it, at a loss above 10."""
    w = torch.nn.Parameter(torch.tensor([3.2, -2.7], dtype=torch.float64))
    optimizer = CBO([w], 0.1, particles=100, spread=3.0, noise=noise, sigma=1.0 if noise == "anisotropic" else 0.7)
    minimise(optimizer, rastrigin, [w], 120)
    assert float(rastrigin(w.detach())) < 0.05  # the next minimum is at 1

    stuck = torch.nn.Parameter(torch.tensor([3.2, -2.7], dtype=torch.float64))
    minimise(torch.optim.SGD([stuck], 1e-3), rastrigin, [stuck], 200)
    assert float(rastrigin(stuck.detach())) > 10


def test_weight_decay_is_the_particles() -> None:
    optimizer, parts, _ = make(lambda w: 0.0, weight_decay=0.5, sigma=0.0, lr=0.2)
    optimizer.step(lambda: 0.0)
    before = whole(parts)
    optimizer.step(lambda: 0.0)
    np.testing.assert_allclose(whole(parts), before * (1 - 0.2 * 0.5), atol=1e-12)
