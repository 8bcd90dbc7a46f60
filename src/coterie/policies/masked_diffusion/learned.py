"""A schedule that is part of the policy: before each forward pass it decides how hot to draw and how many places to
unmask (arXiv:2512.22288).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

FILE = "schedule.safetensors"
FIELDS = 2
"""Numbers of an action: log-temperature, and the log-odds of the share that is unmasked, each added to the plan's."""
COLDEST, HOTTEST = 0.05, 20.0


class Actions(NamedTuple):
    """What the schedule decided, pass by pass. P passes at most."""

    value: Tensor
    """[B,P,2]; 0 where no pass was made"""
    logp: Tensor
    """[B,P] log-density; 0 where no pass was made"""


class Schedule(nn.Module):
    """Each pass has a Gaussian of its own over two numbers u: temperature exp(u0) times that of the rollouts, and a
    share sigmoid(logit(planned share) + u1) of what is masked in the block.

    Their standard deviation `explore` is fixed, their means are learned; at first they are 0: the plan of the recipe.
    `rate` is how much faster than the rest of the policy the means move.
    """

    def __init__(self, passes: int, explore: float, rate: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(passes, FIELDS))
        self.explore, self.rate = explore, rate

    def mean(self) -> Tensor:
        """Means of every pass. [P,2] The gradient of a mean is its weight's: a step of the optimizer, whatever it makes
        of the size of gradients, moves a mean `rate` times as far.
        """
        here = self.weight.detach()
        return self.rate * here + (self.weight - here)

    @torch.no_grad()
    def draw(self, at: Tensor, chance: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """Actions [N,2] of passes `at` [N] and their log-densities [N], from uniform numbers [N,2]; or the means."""
        mean = self.mean()[at]
        noise = torch.special.ndtri(chance.clamp(1e-9, 1 - 1e-9)).to(mean)
        value = mean if greedy else mean + self.explore * noise
        return value, self._density(value, mean)

    def logp(self, value: Tensor) -> Tensor:
        """Log-densities of actions [B,P,2] of the first P passes. [B,P]"""
        return self._density(value, self.mean()[: value.shape[1]])

    def entropy(self) -> float:
        """Differential entropy of an action (nats)."""
        return FIELDS * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(self.explore))

    def _density(self, value: Tensor, mean: Tensor) -> Tensor:
        z = (value - mean) / self.explore
        return (-0.5 * z.square() - math.log(self.explore) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def save(self, folder: str | Path) -> None:
        from safetensors.torch import save_file

        save_file({"weight": self.weight.detach().contiguous()}, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Take over the means of a saved policy, if there are any; of a longer or shorter schedule, those it has."""
        from safetensors.torch import load_file

        if (Path(folder) / FILE).is_file():
            saved = load_file(Path(folder) / FILE)["weight"]
            shared = min(len(saved), len(self.weight))
            self.weight.data[:shared] = saved[:shared].to(self.weight)


def temperature(value: Tensor) -> Tensor:
    """Factor on the temperature. [...,2] -> [...]"""
    return value[..., 0].exp().clamp(COLDEST, HOTTEST)


def count(value: Tensor, left: Tensor, steps: int) -> Tensor:
    """Places to unmask of `left` masked ones with `steps` steps to go: at least one, all in the last. [N,2], [N] -> [N]

    With u1 = 0 the share is 1/steps.
    """
    share = torch.sigmoid(torch.logit(torch.tensor(1.0 / steps, dtype=torch.float64)) + value[:, 1].double())
    return (share * left + 0.5).floor().long().clamp_min(1).minimum(left)
