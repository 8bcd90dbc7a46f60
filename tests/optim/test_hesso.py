"""HESSO against its oracle; without pruning it is AdamW, and what it takes away stays away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.hesso import hesso, scores

from coterie.optim import HESSO
from coterie.optim.hesso import row_scores
from tests.optim.problems import closure_of, numpy

SHAPES = [(5, 3), (4, 2), (3, 6)]


def fresh(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def bumpy(*w: torch.Tensor) -> torch.Tensor:
    return sum((x**4).sum() + (x.sum(1)).cos().sum() for x in w) + w[0].sum() * w[1].sum()  # type: ignore[return-value]


def slopes(w: list[np.ndarray]) -> list[np.ndarray]:
    g = [4 * x**3 - np.sin(x.sum(1, keepdims=True)) for x in w]
    g[0] = g[0] + w[1].sum()
    g[1] = g[1] + w[0].sum()
    return g


def take(parameters: list[torch.nn.Parameter], steps: int, **settings: Any) -> tuple[HESSO, list[list[np.ndarray]]]:
    optimizer, out = HESSO(parameters, **settings), []
    for _ in range(steps):
        optimizer.step(closure_of(bumpy, parameters, optimizer))
        out.append([numpy(p) for p in parameters])
    return optimizer, out


@pytest.mark.oracle("hesso")
@pytest.mark.parametrize(
    "settings",
    [{"sparsity": 0.5, "period": 4}, {"sparsity": 0.5, "period": 3, "start": 2}, {"sparsity": 0.75, "period": 2,
     "periods": 3}, {"sparsity": 0.9, "period": 1, "periods": 2}, {"sparsity": 0.0, "period": 2},
     {"sparsity": 0.25, "period": 20}, {"sparsity": 0.5, "period": 4, "weight_decay": 0.2}],
)  # fmt: skip
def test_it_is_the_oracle(settings: dict[str, Any]) -> None:
    _, got = take(fresh(), 10, lr=0.01, **settings)
    want = hesso([numpy(p) for p in fresh()], slopes, 10, lr=0.01, **settings)
    for now, then in zip(got, want, strict=True):
        for a, b in zip(now, then, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.oracle("hesso")
@given(seed=st.integers(0, 2**31), blank=st.booleans())
def test_the_scores_are_the_oracles(seed: int, blank: bool) -> None:
    rng = np.random.default_rng(seed)
    matrices, gradients = ([rng.normal(size=s) for s in SHAPES] for _ in range(2))
    if blank:
        matrices[0][1], gradients[1][2] = 0, 0
    parameters = [torch.nn.Parameter(torch.as_tensor(m)) for m in matrices]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = torch.as_tensor(g)
    five = torch.cat([row_scores([p]) for p in parameters], 1)
    overall = (five / (five.norm(dim=1, keepdim=True) + 1e-8)).mean(0)
    np.testing.assert_allclose(numpy(overall), scores(matrices, gradients), rtol=1e-9, atol=1e-12)


@pytest.mark.reduction("hesso")
@given(seed=st.integers(0, 2**31), decay=st.floats(0, 0.5), late=st.booleans())
def test_without_pruning_it_is_adamw_bit_for_bit(seed: int, decay: float, late: bool) -> None:
    """With nothing to take away, or before it starts."""
    never: dict[str, Any] = {"start": 5} if late else {"sparsity": 0.0, "period": 2}
    mine, other = fresh(seed), fresh(seed)
    take(mine, 5, lr=0.01, weight_decay=decay, **never)
    reference = torch.optim.AdamW(other, 0.01, weight_decay=decay)
    for _ in range(5):
        closure_of(bumpy, other, reference)()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@pytest.mark.reduction("hesso")
@given(seed=st.integers(0, 2**31), sparsity=st.floats(0, 0.99), periods=st.integers(1, 3), period=st.integers(1, 4))
def test_in_the_end_as_many_rows_are_0_as_was_asked_and_stay_so(
    seed: int, sparsity: float, periods: int, period: int
) -> None:
    parameters = fresh(seed)
    optimizer, _ = take(parameters, periods * period, lr=0.01, sparsity=sparsity, periods=periods, period=period)
    zero = [(p == 0).all(1) for p in parameters]
    assert sum(int(z.sum()) for z in zero) == min(round(sparsity * 12), 9)
    assert all(not z.all() for z in zero), "a row of each tensor is kept"
    for _ in range(3):
        optimizer.step(closure_of(bumpy, parameters, optimizer))
    for p, z in zip(parameters, zero, strict=True):
        assert torch.equal((p == 0).all(1), z)


def test_rows_are_shrunk_evenly() -> None:
    """With a learning rate of 0 only the shrinking is left: 3/4, 2/4, 1/4, 0."""
    parameters = fresh()
    start = [numpy(p) for p in parameters]
    optimizer, seen = take(parameters, 4, lr=0.0, sparsity=0.5, period=4)
    gone = [optimizer.state[p]["pruned"].numpy() for p in parameters]
    for k, now in enumerate(seen):
        for was, at, out in zip(start, now, gone, strict=True):
            np.testing.assert_allclose(at[out], was[out] * (3 - k) / 4, atol=1e-12)
            np.testing.assert_array_equal(at[~out], was[~out])


def test_it_prunes_the_rows_that_are_of_no_use() -> None:
    """A network of 8 hidden units for a target that 2 of them make: the loss after pruning is as low as before."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    y = torch.relu(x[:, :1]) - torch.relu(-x[:, 1:2])
    first = torch.nn.Parameter(0.5 * torch.randn(8, 4, generator=generator, dtype=torch.float64))
    second = torch.nn.Parameter(0.5 * torch.randn(8, 1, generator=generator, dtype=torch.float64))

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (torch.relu(x @ a.T) @ b - y).square().mean()

    optimizer = HESSO(
        [{"params": [first, second], "tied": True}], 0.02, weight_decay=0.05, sparsity=0.5, start=300, period=100
    )
    before = float(loss(first, second).detach())
    for _ in range(900):
        optimizer.step(closure_of(loss, [first, second], optimizer))
    rows = (first == 0).all(1)
    assert int(rows.sum()) == 4 and torch.equal(rows, (second == 0).all(1)), "tied rows go together"
    assert float(loss(first, second).detach()) < 0.02 * before


def test_long_tensors_and_vectors_are_left_whole() -> None:
    long, short, vector = (torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in ((9, 2), (4, 2), (4,)))
    optimizer = HESSO([long, short, vector], 0.01, sparsity=0.5, period=1, max_rows=8)
    for _ in range(2):
        closure = closure_of(lambda a, b, c: a.sum() + (b**2).sum() + c.sum(), [long, short, vector], optimizer)
        optimizer.step(closure)
    assert (long != 0).all() and (vector != 0).all() and int((short == 0).all(1).sum()) == 2
