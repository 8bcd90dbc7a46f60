"""tis, mis, seq-mis: weights for what sampler and trainer disagree on; exact gradients by enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import importance as oracle
from oracles import inputs
from torch import Tensor

from coterie.metrics import Collector, collect
from coterie.mismatch import effective_share, importance, observe
from coterie.objectives.aggregations import constant
from coterie.objectives.ratios import token
from coterie.objectives.trust_regions import unclipped
from coterie.selection import masked_importance, truncated_importance

LEVELS = ("token", "sequence", "geometric")
BOUNDS = [{}, {"low": 0.9, "high": 1.2}, {"low": 0.0, "high": 2.0, "reweight": False}]


def columns(t: dict[str, Any]) -> tuple[Any, ...]:
    return t["logp_train"], t["logp_old"], t["mask"], t["weights"]


def tables(kind: str, seed: int = 0, by_decision: bool = False) -> dict[str, Any]:
    t = inputs.table(kind, seed)
    if by_decision:
        t["weights"] = np.random.default_rng(seed).choice([0.0, 1.0, 0.5], t["mask"].shape)
    return t


@pytest.mark.oracle("tis")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_truncated_is_the_oracles(kind: str, level: Any) -> None:
    for by_decision, cap in itertools.product((False, True), (1.0, 2.0, 1e9)):
        t = tables(kind, by_decision=by_decision)
        got = truncated_importance(*columns(inputs.tensors(t)), level=level, cap=cap)
        np.testing.assert_allclose(got.numpy(), oracle.truncated(*columns(t), level=level, cap=cap), rtol=1e-12)


@pytest.mark.oracle("mis", "seq-mis")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_masked_is_the_oracles(kind: str, level: Any) -> None:
    for by_decision, bounds in itertools.product((False, True), BOUNDS):
        t = tables(kind, by_decision=by_decision)
        got = masked_importance(*columns(inputs.tensors(t)), level=level, **bounds)
        np.testing.assert_allclose(got.numpy(), oracle.masked(*columns(t), level=level, **bounds), rtol=1e-12)


@pytest.mark.oracle("tis", "mis", "seq-mis")
def test_by_hand() -> None:
    """Two rollouts; ratios of decisions 2.5, 0.4, 1 and 1.5, 2, the last place of the second being padding."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    train = torch.tensor([[2.5, 0.4, 1.0], [1.5, 2.0, 7.0]], dtype=torch.float64).log() - 3
    old, weights = torch.full_like(train, -3.0), torch.tensor([1.0, 0.5], dtype=torch.float64)
    table = (train, old, mask, weights)

    def close(got: Tensor, want: list[list[float]]) -> None:
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))

    close(truncated_importance(*table), [[2.0, 0.4, 1.0], [0.75, 1.0, 0.0]])
    close(truncated_importance(*table, level="sequence"), [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    close(truncated_importance(*table, level="geometric"), [[1.0, 1.0, 1.0], [3**0.5 / 2, 3**0.5 / 2, 0.0]])
    close(masked_importance(*table), [[2.5, 0.0, 1.0], [0.75, 1.0, 0.0]])
    close(masked_importance(*table, level="sequence", low=0.0, high=2.0), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    close(masked_importance(*table, level="geometric", low=0.9, high=1.1, reweight=False), [[1.0] * 3, [0.0] * 3])
    chained = masked_importance(*table, level="geometric", low=0.9, high=1.1, reweight=False)
    close(truncated_importance(train, old, mask, chained), [[2.0, 0.4, 1.0], [0.0, 0.0, 0.0]])


@pytest.mark.reduction("tis", "mis", "seq-mis")
@given(st.sampled_from(LEVELS), st.sampled_from(inputs.KINDS), st.floats(1.0, 9.0), st.integers(0, 50))
def test_equal_log_probs_leave_every_weight_as_it_was(level: Any, kind: str, high: float, seed: int) -> None:
    t = inputs.tensors(inputs.table(kind, seed))
    want = torch.where(t["mask"], t["weights"].unsqueeze(-1), 0.0)
    same = (t["logp_old"], t["logp_old"], t["mask"], t["weights"])
    assert torch.equal(truncated_importance(*same, level=level, cap=high), want)
    assert torch.equal(masked_importance(*same, level=level, high=high), want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extreme_log_ratios_give_finite_weights(level: Any, dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    old = torch.tensor([[-14.0, -0.1, -torch.inf], [-1.0, -1.0, -1.0], [-torch.inf] * 3], dtype=dtype)
    train = torch.tensor([[-0.1, -14.0, torch.nan], [-1e4, -1.0, -1.0], [torch.nan] * 3], dtype=dtype)
    for out in (
        truncated_importance(train, old, mask, torch.ones(3, dtype=dtype), level=level),
        masked_importance(train, old, mask, torch.ones(3, dtype=dtype), level=level),
    ):
        assert out.dtype == dtype and out.isfinite().all() and (out[~mask] == 0).all() and out.max() <= 5


@pytest.mark.parametrize("piece", [truncated_importance, masked_importance])
def test_no_gradient_reaches_the_trainers_log_prob(piece: Any) -> None:
    t = inputs.tensors(inputs.table("random"))
    t["logp_train"].requires_grad_()
    assert not piece(*columns(t)).requires_grad


def test_what_is_recorded() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    ratio = torch.tensor([[2.5, 0.4, 1.0], [1.5, 0.01, 7.0]], dtype=torch.float64)
    old, weights = torch.full_like(ratio, -3.0), torch.tensor([[1.0, 1, 1], [1, 0, 0]], dtype=torch.float64)
    found = Collector()
    with collect(found):
        observe(old + ratio.log(), old, weights, mask)
        truncated_importance(old + ratio.log(), old, mask, weights)
        masked_importance(old + ratio.log(), old, mask, weights)
    got, live = found.means(), np.array([2.5, 0.4, 1.0, 1.5])
    cut, kept = np.array([2.0, 0.4, 1.0, 1.5]), np.array([2.5, 0.0, 1.0, 1.5])
    want = {
        "mismatch/mean_abs": abs(np.log(live)).mean(), "mismatch/max_abs": abs(np.log(live)).max(),
        "mismatch/k1": -np.log(live).mean(), "mismatch/k3": (live - 1 - np.log(live)).mean(),
        "mismatch/ratio_mean": live.mean(), "mismatch/ratio_min": 0.4, "mismatch/ratio_max": 2.5,
        "mismatch/perplexity_sampler": np.exp(3.0), "mismatch/perplexity_trainer": np.exp(3.0 - np.log(live).mean()),
        "tis/truncated_share": 0.25, "tis/ratio_mean": live.mean(), "tis/ratio_min": 0.4, "tis/ratio_max": 2.5,
        "tis/effective_share": cut.sum() ** 2 / (4 * (cut**2).sum()),
        "mis/masked_share": 0.25, "mis/ratio_mean": live.mean(), "mis/ratio_min": 0.4, "mis/ratio_max": 2.5,
        "mis/effective_share": kept.sum() ** 2 / (4 * (kept**2).sum()),
    }  # fmt: skip
    assert got == pytest.approx(want)


def test_effective_share_of_nothing() -> None:
    assert effective_share(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)) == 0.0
    assert effective_share(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)) == pytest.approx(1.0)


# Against the exact policy gradient, over every sequence of a tiny policy.

V = 4


class Table:
    """p(y_1) p(y_2 | y_1) from free logits."""

    def __init__(self, length: int, seed: int, near: Table | None = None) -> None:
        g = torch.Generator().manual_seed(seed)
        self.sequences = list(itertools.product(range(V), repeat=length))
        noise = [torch.randn((V,) * (t + 1), generator=g, dtype=torch.float64) for t in range(length)]
        if near is not None:
            noise = [0.6 * n + x.detach() for n, x in zip(noise, near.logits, strict=True)]
        self.logits = [x.requires_grad_() for x in noise]

    def logp(self) -> Tensor:
        tables = [x.log_softmax(-1) for x in self.logits]
        return torch.stack([torch.stack([tables[t][y[: t + 1]] for t in range(len(y))]) for y in self.sequences])


def gradient(length: int, correct: Any = None, *, exact: bool = False) -> Tensor:
    """Expected gradient of A sum_t r_t over what the sampler draws, weighted by `correct`; or the exact one."""
    trainer = Table(length, 0)
    sampler = Table(length, 1, near=trainer)
    advantages = torch.randn(V**length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logp = trainer.logp()
    train = logp.detach()
    old = train if exact else sampler.logp().detach()
    mask = torch.ones_like(train, dtype=torch.bool)
    weights = old.sum(-1).exp()  # how often each sequence is drawn
    if correct is not None:
        weights = correct(train, old, mask, weights)
    coefficients = constant(weights, mask, 1, length=1)
    surrogate = unclipped(token(logp, train, mask), advantages)
    parts = torch.autograd.grad((coefficients * surrogate).sum() * V**length, trainer.logits)
    return torch.cat([p.flatten() for p in parts])


def distance(length: int, correct: Any = None) -> float:
    want = gradient(length, exact=True)
    return float((gradient(length, correct) - want).norm() / want.norm())


def tis(level: Any, cap: float = 1e9) -> Any:
    return lambda *table: truncated_importance(*table, level=level, cap=cap)


def mis(level: Any, low: float = 0.0, high: float = 1e9) -> Any:
    return lambda *table: masked_importance(*table, level=level, low=low, high=high)


@pytest.mark.oracle("tis", "mis", "seq-mis")
@pytest.mark.parametrize("method", [tis, mis])
@pytest.mark.parametrize(("length", "level", "right"), [(1, "token", True), (2, "sequence", True), (2, "token", False)])
def test_without_bounds_the_sequence_level_is_exact_and_the_token_level_is_not(
    method: Any, length: int, level: str, right: bool
) -> None:
    """By token, the ratio of an earlier decision is missing: which prefixes are visited stays the sampler's."""
    found = distance(length, method(level))
    assert found < 1e-12 if right else found > 0.01


@pytest.mark.parametrize("correct", [tis("token", 2.0), tis("sequence", 2.0), tis("token"), mis("token", 0.5, 5.0)])
def test_with_bounds_it_is_nearer_the_exact_gradient_than_without_correction(correct: Any) -> None:
    assert distance(2, correct) < 0.8 * distance(2)


@pytest.mark.parametrize("level", LEVELS)
def test_the_mean_ratio_is_1_in_expectation_by_decision_and_by_sequence(level: Any) -> None:
    trainer = Table(2, 0)
    old, train = Table(2, 1, near=trainer).logp().detach(), trainer.logp().detach()
    ratio = importance(train, old, torch.ones_like(train, dtype=torch.bool), level)
    mean = (old.sum(-1).exp().unsqueeze(-1) * ratio).sum(0)
    assert torch.allclose(mean, torch.ones(2, dtype=torch.float64)) == (level != "geometric")
