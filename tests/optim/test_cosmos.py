"""COSMOS against its oracle; of rank 0 it is Muon, and what is no matrix is AdamW's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.cosmos import cosmos, newton_schulz

from coterie.optim import COSMOS
from coterie.optim.cosmos import orthogonalise
from tests.optim.problems import numpy


def run(weights: np.ndarray, gradients: Any, **settings: Any) -> list[np.ndarray]:
    w = torch.nn.Parameter(torch.as_tensor(weights).clone())
    optimizer, out = COSMOS([w], **settings), []
    for gradient in gradients:
        w.grad = torch.as_tensor(gradient).clone()
        optimizer.step()
        out.append(numpy(w))
    return out


def drawn(shape: tuple[int, int], steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=(steps, *shape)) * np.geomspace(1, 30, shape[1])


@pytest.mark.oracle("cosmos")
@pytest.mark.parametrize("rank", [1, 2, 4, 64])
@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7), (5, 1), (1, 5)])
def test_it_is_the_oracle(shape: tuple[int, int], rank: int) -> None:
    w, g = drawn(shape, 6, rank)
    settings = dict(lr=0.05, rank=rank, gamma=0.3, lr_ratio=0.2, weight_decay=0.1)
    np.testing.assert_allclose(run(w, g, **settings), cosmos(w, g, **settings), rtol=1e-7, atol=1e-9)


@pytest.mark.oracle("cosmos")
def test_gradients_that_vanish_move_nothing_and_break_nothing() -> None:
    w, g = drawn((4, 3), 6, 0)
    g[3:5] = 0
    np.testing.assert_allclose(run(w, g, rank=2), cosmos(w, g, rank=2), rtol=1e-7, atol=1e-9)
    still = run(w, np.zeros((3, 4, 3)), rank=2)
    np.testing.assert_array_equal(still[-1], w)


@pytest.mark.oracle("cosmos")
def test_the_worked_example() -> None:
    (after,) = run(np.eye(2), [np.diag([2.0, 1.0])], lr=0.01, lr_ratio=0.1, rank=1, gamma=0.2)
    np.testing.assert_allclose(after, np.diag([0.998143, 0.999257]), atol=5e-7)


@pytest.mark.reduction("cosmos")
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_of_rank_0_it_is_muon_of_normalised_length(seed: int, rows: int, columns: int) -> None:
    w, g = drawn((rows, columns), 3, seed)
    momentum, at = np.zeros_like(w), w
    for t, (gradient, now) in enumerate(zip(g, run(w, g, lr=0.1, rank=0), strict=True), start=1):
        momentum = 0.95 * momentum + gradient
        nesterov = (gradient + 0.95 * momentum) / (1 + 0.95 * sum(0.95**i for i in range(t)))
        step = newton_schulz(nesterov)
        at = at - 0.1 * 0.1 * np.sqrt(w.size) * step / np.linalg.norm(step)
        np.testing.assert_allclose(now, at, rtol=1e-6, atol=1e-8)


@pytest.mark.reduction("cosmos")
@given(seed=st.integers(0, 2**31), decay=st.floats(0, 0.5))
def test_what_is_no_matrix_or_too_long_is_adamws(seed: int, decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5,), (2, 3, 2), (9, 2), ()]
    mine, theirs = ([torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in shapes] for _ in range(2))
    ours = COSMOS(mine, 0.1, (0.9, 0.95), weight_decay=decay, max_rows=8)
    adamw = torch.optim.AdamW(theirs, 0.1, (0.9, 0.95), weight_decay=decay)
    for _ in range(5):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
        ours.step()
        adamw.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("cosmos")
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), rank=st.integers(0, 4))
def test_the_scale_of_the_gradient_is_nothing_to_it(seed: int, scale: float, rank: int) -> None:
    w, g = drawn((4, 3), 4, seed)
    plain, scaled = (run(w, by * g, rank=rank, eps=1e-14)[-1] for by in (1.0, scale))
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-7)
    length = np.linalg.norm(run(w, g[:1], lr=0.01, lr_ratio=0.5, rank=rank)[0] - w)
    assert length == pytest.approx(0.01 * 0.5 * np.sqrt(12), rel=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 3)])
def test_orthogonalise_is_about_the_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    """Its singular values come between 0.65 and 1.25, as Muon's constants are meant to do."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    inner = left.T @ orthogonalise(x) @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-9)
    assert inner.diagonal().min() > 0.65 and inner.diagonal().max() < 1.25


def test_a_basis_as_wide_as_the_matrix_leaves_nothing_to_blow_up() -> None:
    """In float32 the rest is rounding: the step is the one without it."""
    w, g = drawn((5, 3), 4, 1)
    w, g = w.astype(np.float32), g.astype(np.float32)
    with_rest, without = (run(w, g, rank=3, gamma=gamma)[-1] for gamma in (5.0, 0.0))
    np.testing.assert_allclose(with_rest, without, rtol=1e-4, atol=1e-6)


def test_its_state_is_the_momentum_and_little_more() -> None:
    w = torch.nn.Parameter(torch.randn(100, 80, generator=torch.Generator().manual_seed(0)))
    w.grad = w.detach().clone()
    optimizer = COSMOS([w], rank=4)
    optimizer.step()
    held = sum(v.numel() for v in optimizer.state[w].values() if isinstance(v, torch.Tensor))
    assert held == 100 * 80 + 100 * 4 + 80 * 4 + 4 * 4
