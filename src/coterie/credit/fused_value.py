"""V0.5's advantage: a prior for the prompt's value, fused with the mean of a few rollouts (arXiv:2603.10848)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from coterie.columns import component
from coterie.memory import SuccessRate, visits
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_extreme, group_mean, whiten


@credit(paper="arXiv:2603.10848")
class fused_value:
    """Reward minus w m + (1 - w) V, normalised over the batch; m the group's mean, V the prior. [B] -> [B]

    The mean of n rollouts has variance s2 = V (1 - V) / n if V is right. What of (m - V)^2 goes beyond trust^2 s2 is
    taken for V's bias: w = bias2 / (bias2 + s2), so that V stands alone while m is within `trust` standard errors.
    prior_from: the reward component that holds V, as a value model gives it (the mean over the group's rollouts).
    Without it, and where it is not given (NaN), V is the prompt's success rate over its earlier visits, each worth
    `keep` of itself a visit later; a prompt not seen before has `count` outcomes at the rate `prior`. scale:
    "batch_std" subtracts the batch's mean and divides by its standard deviation + eps (all equal: exactly 0), "none"
    does not. Rewards are rates, 0..1.
    """

    def __init__(
        self,
        *,
        prior_from: str | None = None,
        trust: float = 1.0,
        prior: float = 0.5,
        count: float = 1.0,
        keep: float = 0.96,
        scale: Literal["batch_std", "none"] = "batch_std",
        ddof: int = 1,
        eps: float = 1e-8,
    ) -> None:
        self.prior_from, self.trust, self.prior, self.count, self.keep = prior_from, trust, prior, count, keep
        self.scale, self.ddof, self.eps = scale, ddof, eps
        self.tracker = SuccessRate()

    def __call__(
        self, rewards: Tensor, groups: Tensor, prompt_index: Tensor, components: Mapping[str, Tensor]
    ) -> Tensor:
        """[B] -> [B]"""
        r, visit = rewards.double(), visits(prompt_index, groups)
        value, counts = self.tracker.read(prompt_index, self.prior, self.count)
        self.tracker.write(prompt_index, counts, r, self.keep)
        if self.prior_from is not None:
            given = component(components, self.prior_from, "fused_value").double()
            value = group_mean(torch.where(given.isnan(), value, given), visit)
        value = value.clamp(0.0, 1.0)
        low, high = group_extreme(r, visit, largest=False), group_extreme(r, visit, largest=True)
        mean = group_mean(r, visit).clamp(low, high)
        variance = value * (1 - value) / group_count(visit, r.dtype)
        bias = ((mean - value) ** 2 - self.trust**2 * variance).clamp_min(0.0)
        weight = torch.where(bias > 0, bias / (bias + variance), torch.zeros_like(bias))
        advantages = r - (weight * mean + (1 - weight) * value)
        record("value/prior", value)
        record("value/weight_of_mean", weight)
        record("value/distrusted_share", (bias > 0).double())
        if self.scale == "batch_std":
            advantages = whiten(advantages, self.ddof, self.eps)
        return advantages.to(rewards.dtype)

    def state_dict(self) -> dict[str, Any]:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state)
