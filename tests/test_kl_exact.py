"""Which KL estimator gives the gradient of KL in which place, against exact enumeration of a tiny policy.

A table of logits is the policy: 5 tokens, sequences of 1 or 2. Expectations are sums over every sequence, so equality
is to rounding, not to noise.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.kl import kl_estimate
from coterie.objectives.terms import kl
from coterie.rewards.shaping import kl_reward

V = 5


class Tiny:
    """p(y_1) p(y_2 | y_1) from free logits."""

    def __init__(self, length: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.sequences = list(itertools.product(range(V), repeat=length))
        self.logits = [
            torch.randn((V,) * (t + 1), generator=g, dtype=torch.float64).requires_grad_() for t in range(length)
        ]

    def logp(self) -> Tensor:
        """[every sequence, length]"""
        tables = [x.log_softmax(-1) for x in self.logits]
        return torch.stack([torch.stack([tables[t][y[: t + 1]] for t in range(len(y))]) for y in self.sequences])

    def gradient(self, value: Tensor) -> Tensor:
        parts = torch.autograd.grad(value, self.logits, allow_unused=True)
        return torch.cat(
            [torch.zeros(x.numel()) if g is None else g.flatten() for g, x in zip(parts, self.logits, strict=True)]
        )


def setting(length: int, *, on_policy: bool = True) -> tuple[Tiny, Tensor, Tensor, Tensor]:
    policy = Tiny(length, 0)
    behaviour = policy.logp().detach() if on_policy else Tiny(length, 2).logp().detach()
    return policy, Tiny(length, 1).logp().detach(), behaviour, torch.ones(V**length, length, dtype=torch.bool)


def exact(policy: Tiny, reference: Tensor) -> Tensor:
    """Gradient of sum_y pi(y) log pi(y)/ref(y)."""
    whole = policy.logp().sum(-1)
    return policy.gradient((whole.exp() * (whole - reference.sum(-1))).sum())


def as_loss(length: int, estimator: Any, importance: bool = False, on_policy: bool = True) -> tuple[Tensor, Tensor]:
    """Expected gradient of the loss term over the samples, and the exact one."""
    policy, reference, behaviour, mask = setting(length, on_policy=on_policy)
    term = kl(policy.logp(), reference, behaviour, mask, coef=1.0, estimator=estimator, importance=importance)
    expected = (behaviour.sum(-1).exp() * term.sum(-1)).sum()
    return policy.gradient(expected), exact(policy, reference)


def as_reward(length: int, estimator: Any) -> tuple[Tensor, Tensor]:
    """Expected policy gradient, with returns to go, of the reward -KL, and minus the exact one."""
    policy, reference, behaviour, mask = setting(length)
    rewards = kl_reward(torch.zeros_like(behaviour), behaviour, reference, mask, coef=1.0, estimator=estimator)
    returns = rewards.flip(-1).cumsum(-1).flip(-1)
    expected = (behaviour.sum(-1).exp() * (returns * policy.logp()).sum(-1)).sum()
    return policy.gradient(expected), -exact(policy, reference)


def equal(pair: tuple[Tensor, Tensor]) -> bool:
    close = torch.allclose(*pair, rtol=1e-9, atol=1e-12)
    assert close or float((pair[0] - pair[1]).norm() / pair[1].norm()) > 0.02, "neither equal nor clearly different"
    return close


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_values(estimator: Any) -> None:
    policy, reference, _, _ = setting(1)
    logp = policy.logp().detach()
    value = (logp.exp() * kl_estimate(logp - reference, estimator)).sum()
    assert float(value) == pytest.approx(float((logp.exp() * (logp - reference)).sum()), rel=1e-12)


def test_k2_is_a_biased_value() -> None:
    policy, reference, _, _ = setting(1)
    logp = policy.logp().detach()
    value = (logp.exp() * kl_estimate(logp - reference, "k2")).sum()
    assert abs(float(value / (logp.exp() * (logp - reference)).sum()) - 1) > 0.02


@pytest.mark.reduction("kl-reward")
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(("estimator", "right"), [("k1", True), ("k2", False), ("k3", False)])
def test_in_the_reward_only_k1_is_right(length: int, estimator: str, right: bool) -> None:
    assert equal(as_reward(length, estimator)) == right


@pytest.mark.parametrize("length", [1, 2])
def test_k1_as_a_loss_has_no_gradient_at_all_in_expectation(length: int) -> None:
    assert as_loss(length, "k1")[0].abs().max() < 1e-14


@pytest.mark.reduction("kl")
@pytest.mark.parametrize(("estimator", "right"), [("k1", False), ("k2", True), ("k3", False)])
def test_as_a_loss_on_policy_only_k2_is_right(estimator: str, right: bool) -> None:
    assert equal(as_loss(1, estimator)) == right


def test_k3_as_a_loss_is_the_forward_kl() -> None:
    """E_pi[(1 - ref/pi) grad log pi] = -sum_y ref grad log pi: the gradient of KL(ref || policy)."""
    policy, reference, _, _ = setting(1)
    forward = policy.gradient(-(reference.exp() * policy.logp()).sum())
    assert torch.allclose(as_loss(1, "k3")[0], forward, atol=1e-12)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize(("estimator", "right"), [("k1", True), ("k2", False), ("k3", True)])
def test_as_a_loss_with_the_ratio_k1_and_k3_are_right_on_and_off_policy(
    estimator: str, right: bool, on_policy: bool
) -> None:
    assert equal(as_loss(1, estimator, importance=True, on_policy=on_policy)) == right


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_as_a_loss_off_policy_without_the_ratio_none_is_right(estimator: str) -> None:
    assert not equal(as_loss(1, estimator, on_policy=False))


def per_step(length: int) -> Tensor:
    """E[sum_t d_t grad logp_t]: the gradient of each step's KL at the states the policy visits, visits held fixed."""
    policy, reference, behaviour, _ = setting(length)
    logp = policy.logp()
    d = (logp - reference).detach()
    return policy.gradient((behaviour.sum(-1).exp() * (d * logp).sum(-1)).sum())


@pytest.mark.parametrize(("estimator", "importance"), [("k2", False), ("k1", True), ("k3", True)])
def test_over_two_steps_a_token_level_loss_is_the_sum_of_the_steps_kl_not_the_sequences(
    estimator: Any, importance: bool
) -> None:
    """It leaves out that an early decision changes which states come later; the reward place has that (above)."""
    got, whole = as_loss(2, estimator, importance)
    assert torch.allclose(got, per_step(2), atol=1e-12)
    assert not equal((got, whole))


def test_limits_of_the_exponent() -> None:
    d = torch.tensor([-1e4, -30.0, 30.0, 1e4], dtype=torch.float64)
    values = kl_estimate(d, "k3")
    assert values.isfinite().all() and (values >= 0).all()
    assert values[3] == pytest.approx(9999.0)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators_have_one_minimum_where_the_policies_agree(name: Any) -> None:
    below, at, above = kl_estimate(torch.tensor([-0.7, 0.0, 0.7], dtype=torch.float64), name).tolist()
    assert at == 0.0
    assert (below > 0, above > 0) == (name != "k1", True)
