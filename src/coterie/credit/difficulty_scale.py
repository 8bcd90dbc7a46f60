"""GRPO-S: advantages scaled by how hard a prompt is and how the model responds to it (arXiv:2503.18991)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.columns import component, in_shape_of, per_rollout
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_mean


@credit(paper="arXiv:2503.18991")
class difficulty_scale:
    """Advantages times hardness and responsiveness, both one number a group. [B] or [B,T] -> the same

    hardness: the reward component that says how hard the prompt is, 0..1 (its mean over the group; 1 where not given).
    The gap is how far the group's mean reward stays below the demonstration's, which is `demonstration`, or what the
    component demonstration_from gives. Responsiveness is the running mean of the gap over the group's gap, at most
    `cap`; a group that has reached the demonstration has `cap`. The running mean starts at the first batch's and moves
    by 1 - decay a batch, after use. An advantage of 0 stays 0.
    """

    def __init__(
        self,
        *,
        hardness: str = "hardness",
        demonstration: float = 1.0,
        demonstration_from: str | None = None,
        cap: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        self.hardness, self.demonstration, self.demonstration_from = hardness, demonstration, demonstration_from
        self.cap, self.decay = cap, decay
        self.running: float | None = None

    def __call__(self, advantages: Tensor, rewards: Tensor, groups: Tensor, components: Mapping[str, Tensor]) -> Tensor:
        given = component(components, self.hardness, "difficulty_scale").to(rewards.dtype)
        hard = group_mean(torch.where(given.isnan(), torch.ones_like(given), given), groups)
        shown = per_rollout(self.demonstration, self.demonstration_from, components, rewards, "difficulty_scale")
        gap = group_mean(shown - rewards, groups).clamp_min(0.0)
        now = float(gap.double().mean())
        mean = now if self.running is None else self.running
        self.running = self.decay * mean + (1 - self.decay) * now
        reached = gap * self.cap <= mean
        response = torch.where(reached, self.cap, mean / gap.masked_fill(reached, 1.0))
        factor = hard * response
        record("difficulty/hardness", hard)
        record("difficulty/gap", gap)
        record("difficulty/responsiveness", response)
        record("difficulty/factor", factor)
        return advantages * in_shape_of(factor.to(advantages.dtype), advantages)

    def state_dict(self) -> dict[str, Any]:
        return {"running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running = state["running"]
