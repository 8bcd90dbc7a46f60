"""ZO-RankSGD against its oracle; nothing but the order of the losses counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.zo_ranksgd import rank_estimate, zo_ranksgd

from coterie.optim import ZORankSGD
from coterie.optim.replay import directions
from coterie.optim.zo_ranksgd import ranked_weights
from coterie.streams import stream
from tests.optim.problems import minimise, numpy, rosenbrock


def bumpy(w: np.ndarray) -> float:
    return float((np.cos(w) ** 2).sum() + (w**4).sum() + w[0] * w[-1])


def take(steps: int, loss: Callable[[np.ndarray], float] = bumpy, **settings: Any) -> list[np.ndarray]:
    w, out = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)), []
    optimizer = ZORankSGD([w], **settings)
    for _ in range(steps):
        optimizer.step(lambda: loss(numpy(w)))
        out.append(numpy(w))
    return out


def shift(seed: int) -> Callable[[int, int], np.ndarray]:
    like = torch.empty(5, dtype=torch.float64)
    return lambda step, i: next(directions([like], stream(seed, "direction", step, i))).numpy()


@pytest.mark.oracle("zo-ranksgd")
@pytest.mark.parametrize(
    "settings",
    [{}, {"best": 1}, {"best": 6, "candidates": 6}, {"candidates": 2, "best": 1}, {"mu": 0.5}, {"weight_decay": 0.3},
     {"line_search": 4, "lr": 0.5}, {"line_search": 3, "shrink": 0.1, "weight_decay": 0.1, "lr": 0.3}],
)  # fmt: skip
def test_it_is_the_oracle(settings: dict[str, Any]) -> None:
    settings = {"lr": 0.05, "mu": 0.01} | settings
    want = zo_ranksgd(np.linspace(-1, 1, 5), bumpy, shift(3), 6, **settings)
    np.testing.assert_allclose(take(6, seed=3, **settings), want, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("zo-ranksgd")
def test_the_worked_example() -> None:
    xi = [np.array(x, dtype=float) for x in ((1, 0), (0, 1), (-1, 0))]
    weights = ranked_weights([0.1, 0.2, 0.3], 1)
    np.testing.assert_allclose(-sum(w * x for w, x in zip(weights, xi, strict=True)), [1.5, -0.5])
    np.testing.assert_allclose(-rank_estimate(xi, [0, 1, 2], 1), [1.5, -0.5])


@pytest.mark.reduction("zo-ranksgd")
@given(seed=st.integers(0, 2**31), best=st.integers(1, 8), search=st.integers(1, 3))
def test_only_the_order_counts(seed: int, best: int, search: int) -> None:
    """Any growing function of the loss makes the same steps, bit for bit."""
    settings: dict[str, Any] = dict(lr=0.05, mu=0.05, candidates=8, best=best, seed=seed, line_search=search)
    plain, bent = take(3, **settings), take(3, lambda w: math.atan(bumpy(w)) ** 3 - 7, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(plain, bent, strict=True))


@pytest.mark.reduction("zo-ranksgd")
@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12, unique=True), data=st.data())
def test_the_weights_are_those_of_the_pairs(losses: list[float], data: st.DataObject) -> None:
    """They sum to 0, and say what the graph of known pairs says; a full ranking is linear in the rank."""
    m = len(losses)
    best = data.draw(st.integers(1, m))
    order = sorted(range(m), key=lambda i: losses[i])
    shifts = list(np.eye(m))
    got = ranked_weights(losses, best)
    np.testing.assert_allclose(got, rank_estimate(shifts, order, best), atol=1e-12)
    assert abs(got.sum()) < 1e-12
    full = ranked_weights(losses, m)[order]
    np.testing.assert_allclose(np.diff(full), full[1] - full[0], atol=1e-12)


def test_it_goes_down_the_curved_valley() -> None:
    w = torch.nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    optimizer = ZORankSGD([w], 0.3, mu=0.02, candidates=15, best=5, line_search=8)
    minimise(optimizer, rosenbrock, [w], 500, lr=lambda done: 1 - done)
    assert float(rosenbrock(w.detach())) < 0.05
