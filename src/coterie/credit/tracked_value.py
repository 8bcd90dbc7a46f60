"""SPO's advantage: a reward against what its prompt has earned so far, not against a group (arXiv:2509.13232)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from coterie.columns import per_rollout
from coterie.memory import SuccessRate, visits
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_mean, whiten


@credit(paper="arXiv:2509.13232")
class tracked_value:
    """Reward minus the tracked success rate of its prompt, normalised over the batch. [B] -> [B]

    The rate v = a / (a + b) is that before this visit. Then a <- rho a + R and b <- rho b + 1 - R, with
    rho = 2^(-drift / half_life) limited to least..most: the further the policy has moved since the prompt's last visit,
    the more is forgotten. Every rollout of the visit is counted, rewards limited to 0..1. A prompt not seen before
    starts from `count` outcomes at the rate `prior`, or at the one that the reward component prior_from gives. scale:
    "batch_std" subtracts the mean of the batch and divides by its standard deviation + eps (all equal: exactly 0),
    "none" leaves R - v. Prompts without an index are not tracked.
    """

    def __init__(
        self,
        *,
        scale: Literal["batch_std", "none"] = "batch_std",
        prior: float = 0.5,
        prior_from: str | None = None,
        count: float = 1.0,
        half_life: float = 0.06,
        least: float = 0.875,
        most: float = 0.96,
        ddof: int = 1,
        eps: float = 1e-8,
    ) -> None:
        self.scale, self.prior, self.prior_from, self.count = scale, prior, prior_from, count
        self.half_life, self.least, self.most, self.ddof, self.eps = half_life, least, most, ddof, eps
        self.tracker = SuccessRate()

    def __call__(
        self, rewards: Tensor, groups: Tensor, prompt_index: Tensor, drift: Tensor, components: Mapping[str, Tensor]
    ) -> Tensor:
        """[B] -> [B]"""
        r, visit = rewards.double(), visits(prompt_index, groups)
        prior = per_rollout(self.prior, self.prior_from, components, r, "tracked_value")
        value, counts = self.tracker.read(prompt_index, group_mean(prior, visit), self.count)
        keep = torch.exp2(-group_mean(drift.double(), visit) / self.half_life).clamp(self.least, self.most)
        self.tracker.write(prompt_index, counts, r, keep)
        record("value/rate", value)
        record("value/error", (r - value).abs())
        record("value/kept", keep)
        record("value/drift", drift)
        advantages = r - value
        if self.scale == "batch_std":
            advantages = whiten(advantages, self.ddof, self.eps)
        return advantages.to(rewards.dtype)

    def state_dict(self) -> dict[str, Any]:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state)
