"""SPO's curriculum: prompts that are solved now and then come more often (arXiv:2509.13232)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memory import SuccessRate
from coterie.pieces import curriculum
from coterie.streams import stream


@curriculum(paper="arXiv:2509.13232")
class prioritized:
    """Draw prompts with weight sqrt(v (1 - v)) + explore, v the success rate so far; none twice in a draw that they
    suffice for.

    v is counted from what the loop reports of each rollout: the verifier's verdict, or the reward limited to 0..1 where
    the task has none. A visit's outcomes are worth `keep` of themselves a visit later. A prompt not seen yet has
    `count` outcomes at the rate `prior`, so at 0.5 the new ones go first. explore: what a prompt always or never solved
    keeps.
    """

    def __init__(self, *, explore: float = 0.05, prior: float = 0.5, count: float = 1.0, keep: float = 0.96) -> None:
        self.explore, self.prior, self.count, self.keep = explore, prior, count, keep
        self.tracker = SuccessRate()
        self.draws = 0

    def __call__(self, size: int, count: int, seed: int) -> list[int]:
        """Indices of the next `count` of `size` prompts."""
        rate, _ = self.tracker.read(torch.arange(size), self.prior, self.count)
        weight = (rate * (1 - rate)).sqrt() + self.explore
        rng = np.random.default_rng(stream(seed, "draw", self.draws))
        self.draws += 1
        drawn: list[int] = []
        while len(drawn) < count:  # more than once only where there are not enough prompts
            key = weight.log().numpy() + rng.gumbel(size=size)
            drawn += np.argsort(-key, kind="stable")[: count - len(drawn)].tolist()
        return drawn

    def observe(self, prompt_index: Tensor, rewards: Tensor, correct: Tensor | None) -> None:
        """Count the outcomes of a batch's rollouts. [B] each"""
        index = prompt_index.cpu()
        _, counts = self.tracker.read(index, self.prior, self.count)
        self.tracker.write(index, counts, (rewards if correct is None else correct).cpu(), self.keep)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws, "tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.tracker.load_state_dict(state["tracker"])
