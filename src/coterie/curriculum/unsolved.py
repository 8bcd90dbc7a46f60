"""No-positive resampling: prompts that are nearly always solved are not drawn again (ScaleRL, arXiv:2510.13786)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memory import SuccessRate
from coterie.metrics import record
from coterie.pieces import curriculum
from coterie.streams import stream


@curriculum(paper="arXiv:2510.13786")
class unsolved:
    """Every prompt once an epoch in a new random order, without those that were solved at a rate of `above` or more.

    The rate is over all rollouts of a prompt so far: the verifier's verdict, or the reward limited to 0..1 where the
    task has none. A prompt that was left out does not come back. When none would be left, all are drawn again.
    """

    def __init__(self, *, above: float = 0.9) -> None:
        self.above = above
        self.tracker = SuccessRate()
        self.epoch = -1
        self.queue: list[int] = []

    def __call__(self, size: int, count: int, seed: int) -> list[int]:
        """Indices of the next `count` of `size` prompts."""
        solved = self._solved(size)
        record("draw/solved_share", float(solved.mean()))
        drawn: list[int] = []
        while len(drawn) < count:
            if not self.queue:
                self.epoch += 1
                order = np.random.default_rng(stream(seed, "draw", self.epoch)).permutation(size)
                self.queue = order.tolist()
            index = self.queue.pop(0)
            if not solved[index] or solved.all():
                drawn.append(index)
        return drawn

    def _solved(self, size: int) -> np.ndarray:
        """Which prompts are solved at the rate; one not seen yet is not. [size] bool"""
        counts, known = self.tracker.memory.read(torch.arange(size), torch.zeros(size, 2, dtype=torch.float64))
        rate = counts[:, 0] / counts.sum(-1).clamp_min(1.0)
        return (known & (rate >= self.above)).cpu().numpy()

    def observe(self, prompt_index: Tensor, rewards: Tensor, correct: Tensor | None) -> None:
        """Count the outcomes of a batch's rollouts. [B] each"""
        index = prompt_index.cpu()
        counts, _ = self.tracker.memory.read(index, torch.zeros(len(index), 2, dtype=torch.float64))
        self.tracker.write(index, counts, (rewards if correct is None else correct).cpu(), 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "queue": self.queue, "tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.queue = state["epoch"], list(state["queue"])
        self.tracker.load_state_dict(state["tracker"])
