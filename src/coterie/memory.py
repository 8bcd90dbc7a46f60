"""What pieces remember of each prompt, from one visit to the next, keyed by its index in the training set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.reductions import group_count, group_sum


def visits(prompt_index: Tensor, groups: Tensor) -> Tensor:
    """Labels of prompts: all rollouts a batch has of one prompt are one visit, in whatever groups they stand. A prompt
    without an index is its group. [B] -> [B] int
    """
    alone = torch.unique(groups, return_inverse=True)[1]
    return torch.where(prompt_index >= 0, prompt_index, -1 - alone)


class PromptMemory:
    """A row of `width` float64 numbers for each prompt that was written. Prompts without an index are not kept."""

    def __init__(self, width: int) -> None:
        self.prompts = torch.full((1,), -1)  # ascending; the first row is nobody's
        self.values = torch.zeros(1, width, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.prompts) - 1

    def read(self, prompt_index: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each prompt, or `first` where there is none yet; and whether there is. [B] -> [B,width], [B]"""
        device = prompt_index.device
        self.prompts, self.values = self.prompts.to(device), self.values.to(device)
        place = torch.searchsorted(self.prompts, prompt_index).clamp(max=len(self.prompts) - 1)
        known = (prompt_index >= 0) & (self.prompts[place] == prompt_index)
        return torch.where(known.unsqueeze(-1), self.values[place], first), known

    def write(self, prompt_index: Tensor, rows: Tensor) -> None:
        """Keep a row for each prompt: the last one, where it is given several. [B], [B,width]"""
        has = prompt_index >= 0
        keys = torch.cat([self.prompts.to(has.device), prompt_index[has]])
        values = torch.cat([self.values.to(has.device), rows[has].double()])
        self.prompts, place = torch.unique(keys, return_inverse=True)
        last = torch.zeros_like(self.prompts).scatter_reduce(
            0, place, torch.arange(len(keys), device=has.device), "amax"
        )
        self.values = values[last]

    def state_dict(self) -> dict[str, Any]:
        return {"prompts": self.prompts.cpu(), "values": self.values.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prompts, self.values = state["prompts"], state["values"]


class SuccessRate:
    """Successes and failures of each prompt, as the two counts of a Beta distribution, older ones worth less."""

    def __init__(self) -> None:
        self.memory = PromptMemory(2)

    def read(self, prompt_index: Tensor, prior: Tensor | float, count: float) -> tuple[Tensor, Tensor]:
        """Rate of success of each prompt before this visit, and its counts. [B] -> [B], [B,2] float64

        A prompt not seen yet has `count` outcomes to start with, a share `prior` of them successes.
        """
        if count <= 0:
            raise RecipeError(
                f"count, what a prior is worth in outcomes, must be above 0, got {count:g}", hint="count=1"
            )
        rate = torch.as_tensor(prior, dtype=torch.float64, device=prompt_index.device).expand(prompt_index.shape)
        rate = rate.clamp(0.0, 1.0)
        counts, _ = self.memory.read(prompt_index, count * torch.stack([rate, 1 - rate], -1))
        return counts[:, 0] / counts.sum(-1), counts

    def write(self, prompt_index: Tensor, counts: Tensor, outcomes: Tensor, keep: Tensor | float) -> None:
        """Add a visit: the old counts times `keep`, plus every rollout's outcome, limited to 0..1. [B], [B,2], [B]"""
        won = group_sum(outcomes.double().clamp(0.0, 1.0), prompt_index)
        new = torch.stack([won, group_count(prompt_index, torch.float64) - won], -1)
        kept = torch.as_tensor(keep, dtype=torch.float64, device=counts.device).expand(prompt_index.shape)
        self.memory.write(prompt_index, kept.unsqueeze(-1) * counts + new)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state)
