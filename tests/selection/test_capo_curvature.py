from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.capo_curvature import changes, columns
from torch import Tensor

from coterie.api import start
from coterie.columns import CURVATURE
from coterie.metrics import Collector, collect
from coterie.policies.logprobs import score_curvature
from coterie.recipe import resolve
from coterie.rollouts import Sampling
from coterie.selection import bounded_curvature
from tests.e2e.conftest import TINY

NAMES = ("hidden_square", "score_square", "score_variance", "advantages", "mask", "weights")
LR = 0.05


def world(kind: str, seed: int, wide: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A table whose curvature columns are those of drawn distributions and states, and m_H and m_F of its decisions."""
    n = inputs.table(kind, seed)
    rng, mask = np.random.default_rng(seed), n["mask"]
    if wide:
        n["advantages"] = rng.standard_normal(mask.shape)
    m_h, m_f = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in np.ndindex(*mask.shape):
        pi, h, taken = rng.dirichlet(np.full(5, 0.5)), rng.standard_normal(3), int(rng.integers(5))
        n["hidden_square"][i, t], n["score_square"][i, t], n["score_variance"][i, t] = columns(pi, taken, h)
        a = float(n["advantages"][i, t] if wide else n["advantages"][i])
        m_h[i, t], m_f[i, t] = changes(pi, taken, h, a, LR)
    return n, m_h, m_f


def between(values: np.ndarray, share: float) -> float:
    """A bound with `share` of the values below it, in the middle of a gap."""
    x = np.sort(np.append(np.abs(values), [0.0, 2 * np.abs(values).max() + 1]))
    place = int(share * (len(x) - 2))
    return float(x[place : place + 2].mean())


@pytest.mark.oracle("capo-curvature")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str, wide: bool) -> None:
    for seed in range(2):
        n, m_h, m_f = world(kind, seed, wide)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in NAMES}
        for of_h, of_f in ((0.5, 1.0), (1.0, 0.5), (0.7, 0.8)):
            tau_h, tau_f = between(m_h[n["mask"]], of_h), between(m_f[n["mask"]], of_f)
            got = bounded_curvature(*(t[c] for c in NAMES), lr=LR, max_objective=tau_h, max_policy=tau_f)
            keep = n["mask"] & (np.abs(m_h) < tau_h) & (m_f < tau_f)
            np.testing.assert_array_equal(got, np.where(keep, n["weights"][:, None], 0.0))


def one(advantage: float, **settings: float) -> tuple[float, dict[str, float]]:
    """A token of two equally likely ones, its state (1, 2), a step of 0.01."""
    values = [*columns((0.5, 0.5), 0, (1.0, 2.0)), advantage]
    row = [torch.tensor([[x]], dtype=torch.float64) for x in values]
    mask = torch.ones(1, 1) > 0
    with collect(seen := Collector(), mask):
        got = bounded_curvature(*row, mask, torch.ones(1, dtype=torch.float64), lr=0.01, **settings)
    return float(got), seen.means()


@pytest.mark.oracle("capo-curvature")
def test_numbers_of_the_source() -> None:
    weight, seen = one(1.0)
    assert weight == 0.0 and seen["capo/rejected_share"] == 1.0
    assert seen["capo/objective_change"] == pytest.approx(0.025)
    assert seen["capo/policy_change"] == pytest.approx(0.000313, abs=1e-6)
    assert one(1.0, max_objective=0.03)[0] == 0.0 and one(1.0, max_policy=4e-4)[0] == 0.0
    assert one(1.0, max_objective=0.03, max_policy=4e-4)[0] == 1.0
    assert one(0.0)[0] == 1.0 and one(0.0)[1]["capo/objective_change"] == 0.0


@pytest.mark.reduction("capo-curvature")
@given(st.integers(0, 10_000))
def test_without_bounds_every_decision_stays(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    free = {"max_objective": float("inf"), "max_policy": float("inf")}
    got = bounded_curvature(*(t[c] for c in NAMES), **free)
    assert torch.equal(got, torch.where(t["mask"], t["weights"].unsqueeze(-1), 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(dtype: torch.dtype) -> None:
    big = torch.tensor([[1e30, 1.0, torch.nan, 0.0]], dtype=dtype)
    mask = torch.tensor([[1, 1, 0, 1]]) > 0
    ones = torch.ones(1, dtype=dtype)
    got = bounded_curvature(big, torch.ones_like(big), torch.ones_like(big), 1e3 * ones, mask, ones)
    assert got.tolist() == [[0.0, 0.0, 0.0, 1.0]] and got.dtype == dtype
    assert bounded_curvature(big, big, big, ones, mask & False, ones).tolist() == [[0.0] * 4]


def sample() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((9, 4), (11, 4)))
    return hidden, weight, torch.randint(11, (9,), generator=draw)


@pytest.mark.oracle("capo-curvature")
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_the_columns_are_those_of_the_oracle(chunk: int) -> None:
    hidden, weight, tokens = sample()
    spec = Sampling(temperature=0.7)
    got = score_curvature(hidden, lambda h: h @ weight.T, tokens, spec, chunk)
    assert set(got) == CURVATURE
    pi = (hidden @ weight.T / 0.7).softmax(-1).tolist()
    want = [columns(p, a, h) for p, a, h in zip(pi, tokens.tolist(), (hidden / 0.7).tolist(), strict=True)]
    have = torch.stack([got[c] for c in NAMES[:3]], -1)
    np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-15)
    empty = score_curvature(hidden[:0], lambda h: h @ weight.T, tokens[:0], spec, chunk)
    assert all(x.shape == (0,) for x in empty.values())


@pytest.mark.oracle("capo-curvature")
def test_the_foreseen_change_is_that_of_a_real_step_of_the_output_layer() -> None:
    """m_H is the change of A pi / pi_old to second order, which a step of W shows."""
    hidden, weight, tokens = sample()
    for h, taken in zip(hidden, tokens.tolist(), strict=True):
        for a in (1.3, -0.7):
            w = weight.clone().requires_grad_()
            logp = (w @ h).log_softmax(-1)[taken]
            (step,) = torch.autograd.grad(a * logp, w)
            lr = 1e-4
            after = ((weight + lr * step) @ h).log_softmax(-1)[taken]
            change = a * float(torch.expm1(after - logp.detach()))
            m_h, m_f = changes((weight @ h).softmax(-1).tolist(), taken, h.tolist(), a, lr)
            assert change == pytest.approx(m_h, rel=1e-5, abs=1e-15)
            assert m_f == pytest.approx(0.5 * float(after - logp.detach()) ** 2, rel=1e-2, abs=1e-15)


def test_bounds_act_in_the_loop(tmp_path: Any) -> None:
    shares = {}
    for bound in (1e9, 1e-9):
        own = [f"selection.weights.bounded_curvature.{k}={bound}" for k in ("max_objective", "max_policy")]
        recipe = resolve(method="capo-curvature", overrides=[*TINY, "task.dense=true", "steps=1", *own])
        metrics = start(recipe, tmp_path / str(bound), quiet=True).metrics
        shares[bound] = next(row["capo/rejected_share"] for row in metrics if "capo/rejected_share" in row)
    assert shares[1e9] == 0.0 and shares[1e-9] > 0.3
