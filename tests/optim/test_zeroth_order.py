"""MeZO, its relatives and Sparse MeZO against one oracle, what they reduce to, and that they hold nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.zeroth_order import small_threshold, zeroth_order
from torch import Tensor

from coterie.optim import MeZO, SparseMeZO, ZerothOrder
from coterie.optim.replay import directions
from coterie.streams import stream
from tests.optim.problems import closure_of, numpy, quadratic

SHAPES = [(2, 3), (4,), (3, 1)]
STEPS = 5


def fresh() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def bumpy(w: list[np.ndarray]) -> float:
    """Neither quadratic nor separable."""
    first, second, third = (x.flatten() for x in w)
    return float((np.cos(first) ** 2).sum() + (second**4).sum() + first[:3] @ third + np.sin(second.sum() * third[0]))


def close(optimizer: torch.optim.Optimizer) -> Any:
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    return lambda: bumpy([numpy(t) for t in tensors])


def take(optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[list[np.ndarray]]:
    out = []
    for _ in range(steps):
        optimizer.step(close(optimizer))
        out.append([numpy(p) for group in optimizer.param_groups for p in group["params"]])
    return out


def same(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> None:
    for now, then in zip(got, want, strict=True):
        for a, b in zip(now, then, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def drawn(seed: int = 0, density: float = 1.0) -> Any:
    def direction(step: int, block: int, sample: int, members: list[int]) -> list[np.ndarray]:
        chosen = [torch.empty(SHAPES[i], dtype=torch.float64) for i in members]
        return [z.numpy() for z in directions(chosen, stream(seed, "direction", step, block, sample), density)]

    return direction


@pytest.mark.oracle("mezo", "zo-sgd-sign", "zo-sgd-mmt", "zo-sgd-cons", "zo-adam", "zo-bench")
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"rule": "sign"}, {"momentum": 0.9}, {"rule": "adam"}, {"conservative": True}, {"sides": 1},
        {"samples": 3}, {"blocks": 2}, {"blocks": 3, "samples": 2, "sides": 1}, {"weight_decay": 0.5},
        {"conservative": True, "rule": "sign", "samples": 2, "weight_decay": 0.1}, {"eps": 0.2}, {"lr": 0.5},
        {"rule": "adam", "samples": 2, "blocks": 2}, {"momentum": 0.5, "sides": 1, "weight_decay": 0.1},
    ],
)  # fmt: skip
def test_it_is_the_oracle(settings: dict[str, Any]) -> None:
    settings = {"lr": 0.01, "eps": 1e-3} | settings
    got = take(ZerothOrder(fresh(), seed=7, **settings))
    same(got, zeroth_order([numpy(p) for p in fresh()], bumpy, drawn(7), STEPS, **settings))


@pytest.mark.oracle("zo-bench")
def test_a_share_of_each_direction_is_the_oracle() -> None:
    got = take(ZerothOrder(fresh(), 0.01, density=0.4))
    same(got, zeroth_order([numpy(p) for p in fresh()], bumpy, drawn(density=0.4), STEPS, 0.01))
    entries = torch.cat([z.flatten() for z in directions([torch.empty(2000)], 0, 0.4)])
    assert 0.35 < float((entries != 0).float().mean()) < 0.45


@pytest.mark.oracle("sparse-mezo")
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.99])
def test_sparse_mezo_is_the_oracle(sparsity: float) -> None:
    got = take(SparseMeZO(fresh(), 0.01, sparsity=sparsity, samples=2, weight_decay=0.1))
    start = [numpy(p) for p in fresh()]
    thresholds = [small_threshold(w, sparsity) if sparsity else np.inf for w in start]
    want = zeroth_order(start, bumpy, drawn(), STEPS, 0.01, samples=2, thresholds=thresholds, weight_decay=0.1)
    same(got, want)


def given_direction(monkeypatch: pytest.MonkeyPatch, *z: float) -> None:
    def replay(parameters: Any, seed: int, density: float) -> Iterator[Tensor]:
        for _ in parameters:
            yield torch.tensor(z, dtype=torch.float64)

    monkeypatch.setattr(sys.modules[ZerothOrder.__module__], "directions", replay)


@pytest.mark.oracle("mezo", "zo-bench", "zo-sgd-sign")
@pytest.mark.parametrize(("rule", "want"), [("sgd", (-0.5, 0.5)), ("sign", (-0.1, 0.1))])
def test_the_worked_example(monkeypatch: pytest.MonkeyPatch, rule: str, want: tuple[float, float]) -> None:
    given_direction(monkeypatch, 1, -1)
    w, losses = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), iter([1.01, 1.00])
    ZerothOrder([w], 0.1, rule=rule).step(lambda: next(losses))
    np.testing.assert_allclose(numpy(w), want, atol=1e-12)


@pytest.mark.oracle("sparse-mezo")
def test_the_worked_example_of_sparse_mezo(monkeypatch: pytest.MonkeyPatch) -> None:
    given_direction(monkeypatch, 1, 1, -1, 1)
    w = torch.nn.Parameter(torch.tensor([0.1, -2, 0.3, 1], dtype=torch.float64))
    losses = iter([1.01, 1.00])
    SparseMeZO([w], 1e-3, sparsity=0.5).step(lambda: next(losses))
    np.testing.assert_allclose(numpy(w), [0.095, -2, 0.305, 1], atol=1e-12)


@pytest.mark.reduction("mezo", "sparse-mezo")
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 3), lr=st.floats(1e-6, 0.1))
def test_with_no_mask_sparse_mezo_is_mezo_is_the_plain_zeroth_order_step(seed: int, samples: int, lr: float) -> None:
    settings: dict[str, Any] = dict(lr=lr, samples=samples, seed=seed, weight_decay=0.01)
    runs = [take(make(fresh(), **settings), 2) for make in (MeZO, ZerothOrder)]
    runs.append(take(SparseMeZO(fresh(), sparsity=0.0, **settings), 2))
    for other in runs[1:]:
        for now, then in zip(runs[0], other, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(now, then, strict=True))


@pytest.mark.oracle("forward-gradient")
@pytest.mark.parametrize("samples", [1, 3])
def test_the_forward_gradient_is_the_slope_times_the_direction(samples: int) -> None:
    """Written out: the slope along z is sum_i dL/dw_i z_i, for a quadratic k (w - best)."""
    curvature, best = np.array([1.0, 2, 4, 0.5, 3, 1.5]), np.array([1.0, -1, 0.5, 2, -0.5, 0])
    w = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer, want = ZerothOrder([w], 0.01, eps=0.0, samples=samples), np.zeros(6)
    for step in range(4):
        move = np.zeros(6)
        for sample in range(samples):
            (z,) = directions([w], stream(0, "direction", step, 0, sample))
            slope = sum(curvature[i] * (want[i] - best[i]) * float(z[i]) for i in range(6))
            move += slope * z.numpy() / samples
        want = want - 0.01 * move
        optimizer.step(closure_of(quadratic, [w], optimizer))
        np.testing.assert_allclose(numpy(w), want, rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("forward-gradient")
@given(seed=st.integers(0, 2**31))
def test_two_points_close_together_are_the_forward_gradient(seed: int) -> None:
    ends = []
    for eps in (0.0, 1e-4):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
        optimizer = ZerothOrder([w], 0.01, eps=eps, seed=seed)
        for _ in range(2):
            optimizer.step(closure_of(quadratic, [w], optimizer))
        ends.append(numpy(w))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5, atol=1e-7)


@pytest.mark.reduction("zo-sgd-cons")
@given(seed=st.integers(0, 2**31), lr=st.floats(1e-4, 10.0), rule=st.sampled_from(["sgd", "sign"]))
def test_the_conservative_step_never_goes_up(seed: int, lr: float, rule: str) -> None:
    optimizer = ZerothOrder(fresh(), lr, seed=seed, conservative=True, rule=rule)
    before = close(optimizer)()
    for _ in range(3):
        optimizer.step(close(optimizer))
        after = close(optimizer)()
        assert after <= before + 1e-9 * max(1, abs(before))
        before = after


@pytest.mark.reduction("zo-sgd-sign")
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_of_the_sign_only_the_direction_counts(seed: int, scale: float) -> None:
    plain, scaled = (ZerothOrder(fresh(), 0.01, rule="sign", seed=seed) for _ in range(2))
    for _ in range(3):
        plain.step(close(plain))
        scaled.step(lambda: scale * close(scaled)())
    pairs = zip(plain.param_groups[0]["params"], scaled.param_groups[0]["params"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.reduction("zo-sgd-mmt", "zo-adam", "zo-bench")
@given(seed=st.integers(0, 2**31))
def test_momentum_and_adam_get_what_sgd_and_adamw_would_be_given(seed: int) -> None:
    """torch's own optimizers, handed the estimate of the plain step."""
    for ours, theirs in (
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        ({"rule": "adam"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0)),
        ({}, lambda p: torch.optim.SGD(p, 0.01)),
    ):
        mine, other = fresh(), fresh()
        optimizer, reference = ZerothOrder(mine, 0.01, seed=seed, **ours), theirs(other)
        for _ in range(3):
            estimate = [p.detach().clone() for p in other]
            probe = ZerothOrder(estimate, 1.0, seed=seed)
            probe.param_groups[0]["steps"] = optimizer.param_groups[0]["steps"]
            probe.step(close(probe))
            for p, moved in zip(other, estimate, strict=True):
                p.grad = p.detach() - moved
            reference.step()
            optimizer.step(close(optimizer))
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.reduction("zo-bench")
def test_blocks_are_as_many_estimates_each_of_its_own_tensors() -> None:
    """The estimate's mean is the gradient in both cases; with a block a tensor a loss that is a sum falls apart."""
    tensors = [torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3)]
    calls: list[float] = []

    def loss() -> float:
        calls.append(1.0)
        return float((tensors[0] ** 2).sum().detach())

    ZerothOrder(tensors, 0.1, blocks=3, samples=2).step(loss)
    assert len(calls) == 12
    assert not torch.equal(tensors[0], torch.ones(2)) and all(
        torch.allclose(t, torch.ones(2, dtype=torch.float64), atol=1e-12) for t in tensors[1:]
    )


def test_it_holds_no_gradient_no_state_and_puts_the_weights_back() -> None:
    w = torch.nn.Parameter(torch.randn(4000, generator=torch.Generator().manual_seed(0)))
    before = w.detach().clone()
    for optimizer in (MeZO([w], 0.0), SparseMeZO([w], 0.0)):
        for _ in range(50):
            optimizer.step(lambda: float((w**2).sum().detach()))
        assert w.grad is None
        assert not any(isinstance(v, Tensor) for kept in optimizer.state.values() for v in kept.values())
    assert (w.detach() - before).abs().max() < 1e-5  # rounding of float32 in 300 shifts


def test_sparse_mezo_leaves_the_large_weights_alone_even_after_they_have_moved() -> None:
    """A weight near the threshold may be shifted over it: what was small at the start of the step stays so in it."""
    w = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 5.0, 6.0, 7.0], dtype=torch.float64))
    optimizer = SparseMeZO([w], 0.0, eps=0.5, sparsity=0.5)
    seen: list[np.ndarray] = []
    for _ in range(20):
        optimizer.step(lambda: seen.append(numpy(w)) or 0.0)
    assert all((at[3:] == [5, 6, 7]).all() for at in seen) and any((at[:3] > 0.3).any() for at in seen)
    np.testing.assert_allclose(numpy(w), [0.1, 0.2, 0.3, 5, 6, 7], atol=1e-12)


def test_groups_may_look_at_distances_of_their_own() -> None:
    """Half the distance in one group, and the estimate is still of the gradient: exact for a linear loss."""
    a, b = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = ZerothOrder([{"params": [a], "eps": 1e-3}, {"params": [b], "eps": 2e-3}], 1.0)
    total, steps = np.zeros(4), 4000
    for _ in range(steps):
        optimizer.step(lambda: float((a.sum() + 3 * b.sum()).detach()))
    total = np.concatenate([numpy(a), numpy(b)]) / steps
    np.testing.assert_allclose(total, [-1, -1, -3, -3], atol=0.45)
