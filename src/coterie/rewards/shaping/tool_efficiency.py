"""OTC's reward: a right answer is worth the more, the fewer tool calls it took (arXiv:2504.14870)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme


@shaping(paper="arXiv:2504.14870")
class tool_efficiency:
    """Rewards times alpha * r: r is 1 for a rollout with the fewest calls n that solve its prompt, less for more. [B]

    For m calls r = sin(pi m / (m + n)), and cos(pi m / (2m + smooth)) where n is 0. n is taken over the right rollouts
    of the group, and with remember=True over all that were ever right on that prompt. calls: the reward component that
    counts them. r is 1 where nobody was right yet, and where the count is not given (NaN).
    """

    def __init__(
        self, *, calls: str = "tool_calls", alpha: float = 1.0, smooth: float = 1.0, remember: bool = True
    ) -> None:
        self.calls, self.alpha, self.smooth, self.remember = calls, alpha, smooth, remember
        self.prompts = torch.zeros(0, dtype=torch.long)
        self.fewest = torch.zeros(0, dtype=torch.float64)

    def __call__(
        self, rewards: Tensor, groups: Tensor, correct: Tensor, components: Mapping[str, Tensor], prompt_index: Tensor
    ) -> Tensor:
        """[B] -> [B]"""
        m = component(components, self.calls, "tool_efficiency").to(rewards.dtype)
        n = group_extreme(m.masked_fill(~correct | m.isnan(), torch.inf), groups, largest=False)
        if self.remember:
            n = self._record(n, prompt_index)
        known = n.isfinite() & ~m.isnan()
        record("otc/calls", m, ~m.isnan())
        record("otc/fewest", n, n.isfinite())
        few = (math.pi * m / (2 * m + self.smooth)).cos()
        worth = torch.where(n == 0, few, (math.pi * m / (m + n)).sin())
        record("otc/efficiency", worth, known & correct)
        return rewards * self.alpha * torch.where(known, worth, torch.ones_like(worth))

    def _record(self, n: Tensor, prompt_index: Tensor) -> Tensor:
        """The best so far of each rollout's prompt, this batch included; prompts without an index are not kept."""
        known = prompt_index >= 0
        keys = torch.cat([self.prompts.to(n.device), prompt_index[known]])
        values = torch.cat([self.fewest.to(n.device, n.dtype), n[known]])
        prompts, place = torch.unique(keys, return_inverse=True)
        fewest = torch.full(prompts.shape, torch.inf, dtype=n.dtype, device=n.device)
        fewest = fewest.scatter_reduce(0, place, values, "amin")
        solved = fewest.isfinite()
        out = n.clone()
        out[known] = fewest[place[len(self.prompts) :]]
        self.prompts, self.fewest = prompts[solved].cpu(), fewest[solved].cpu().double()
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "fewest": self.fewest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prompts, self.fewest = state["prompts"], state["fewest"]
