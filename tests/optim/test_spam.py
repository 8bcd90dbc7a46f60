"""SPAM against its oracle; without spikes and resets it is AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.spam import spam

from coterie.optim import SPAM
from tests.optim.problems import minimise, numpy, quadratic

SHORT = dict(lr=0.02, eps=1e-6, threshold=3.0, reset_every=7, warmup=3, start=2)


def run(gradients: Any, shape: tuple[int, ...], **settings: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights after each step, and the masks that were drawn."""
    w = torch.nn.Parameter(torch.linspace(-1, 1, int(np.prod(shape)), dtype=torch.float64).view(shape))
    optimizer, out, masks = SPAM([w], **settings), [], []
    for gradient in gradients:
        w.grad = torch.as_tensor(gradient).view(shape).clone()
        given = w.grad.clone()
        optimizer.step()
        assert torch.equal(w.grad, given), "the gradient is the caller's"
        out.append(numpy(w).flatten())
        mask = optimizer.state[w].get("mask")
        if mask is not None and (not masks or not np.array_equal(masks[-1], mask.numpy().flatten())):
            masks.append(mask.numpy().flatten())
    return out, masks


def spiky(steps: int, size: int, seed: int) -> np.ndarray:
    """Gradients with spikes a thousand times as large, and an entry that is 0 for long."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(steps, size))
    g[rng.random(g.shape) < 0.1] *= 1000
    g[: steps // 2, 0] = 0
    return g


@pytest.mark.oracle("spam")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "more",
    [{}, {"weight_decay": 0.3}, {"threshold": 0.0}, {"reset_every": 0}, {"warmup": 10}, {"start": 4},
     {"betas": (0.5, 0.9)}],
)  # fmt: skip
def test_it_is_the_oracle(more: dict[str, Any], seed: int) -> None:
    settings = SHORT | more
    g = spiky(25, 6, seed)
    got, _ = run(g, (6,), **settings)
    betas = settings.pop("betas", (0.9, 0.999))
    want = spam(np.linspace(-1, 1, 6), g, beta1=betas[0], beta2=betas[1], **settings)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("spam")
@pytest.mark.parametrize("seed", range(4))
def test_sparse_momentum_is_the_oracle_on_its_masks(seed: int) -> None:
    g = spiky(25, 24, seed)
    got, masks = run(g, (4, 6), density=0.5, seed=seed, weight_decay=0.1, **SHORT)
    assert len(masks) == 4 and all(3 < m.sum() < 21 for m in masks)
    want = spam(np.linspace(-1, 1, 24), g, masks=masks, weight_decay=0.1, **SHORT)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_sparse_momentum_holds_only_what_moves() -> None:
    matrix, vector = (torch.nn.Parameter(torch.zeros(s)) for s in ((100, 20), (50,)))
    matrix.grad, vector.grad = torch.ones(100, 20), torch.ones(50)
    optimizer = SPAM([matrix, vector], density=0.25)
    optimizer.step()
    kept = optimizer.state[matrix]
    assert kept["exp_avg"].numel() == kept["exp_avg_sq"].numel() == int(kept["mask"].sum()) < 700
    assert "mask" not in optimizer.state[vector]
    assert torch.equal(matrix != 0, kept["mask"])


@pytest.mark.oracle("spam")
@pytest.mark.parametrize(("threshold", "want"), [(50.0, -0.025716), (0.0, -0.026496)])
def test_the_worked_example(threshold: float, want: float) -> None:
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SPAM([w], lr=0.01, threshold=threshold, start=2)
    for g in (1.0, 1.0, 100.0):
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    assert w.item() == pytest.approx(want, abs=1e-6)


@pytest.mark.reduction("spam")
@given(
    seed=st.integers(0, 2**31), lr=st.floats(1e-5, 0.5), decay=st.floats(0, 0.5), beta=st.floats(0, 0.99),
    eps=st.floats(1e-12, 1e-3),
)  # fmt: skip
def test_without_spikes_and_resets_it_is_adamw(seed: int, lr: float, decay: float, beta: float, eps: float) -> None:
    g = spiky(12, 5, seed)
    one, two = (torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)) for _ in range(2))
    ours = SPAM([one], lr, (beta, 0.99), eps, decay, threshold=0.0, reset_every=0)
    theirs = torch.optim.AdamW([two], lr, (beta, 0.99), eps, decay)
    for row in g:
        one.grad, two.grad = torch.tensor(row), torch.tensor(row)
        ours.step()
        theirs.step()
    torch.testing.assert_close(one.detach(), two.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("spam")
def test_a_reset_forgets_all_but_the_weights() -> None:
    """After it, gradients of two different pasts make the same steps."""
    ends = []
    for past in (0.1, -30.0):
        w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = SPAM([w], 0.1, reset_every=5, warmup=2)
        for n in range(1, 8):
            if n == 5:
                before = w.detach().clone()
            w.grad = torch.full((3,), past if n < 5 else float(n), dtype=torch.float64)
            optimizer.step()
        ends.append(w.detach() - before)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


def test_a_spike_costs_it_less_than_adam() -> None:
    """One gradient a million times too large, the wrong way, while it descends."""
    far = []
    for threshold in (50.0, 0.0):
        w = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        optimizer = SPAM([w], 0.02, (0.9, 0.99), threshold=threshold)
        minimise(optimizer, quadratic, [w], 100)
        w.grad = torch.full((6,), 1e6, dtype=torch.float64)
        optimizer.step()
        minimise(optimizer, quadratic, [w], 100)
        far.append(float(quadratic(w.detach())))
    assert far[0] < 0.2 * far[1]


def test_an_entry_that_never_had_a_gradient_can_still_learn() -> None:
    """The rule taken at its word would clip its first gradient to sqrt(threshold * 0), and every one after it."""
    w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SPAM([w], 0.1)
    for n in range(60):
        w.grad = torch.tensor([1.0, float(n >= 40)], dtype=torch.float64)
        optimizer.step()
    assert w[1] < -0.5
