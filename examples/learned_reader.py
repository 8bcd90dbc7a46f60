"""A reward that learns along with the run: a reader of digits, taught by the policy's own drawings.

    coterie train src/coterie/recipes/flow.yaml rewards.functions='[{fn: examples/learned_reader.py:Reader}]'

No picture but the policy's is ever shown to it: each drawing is labelled with the digit that was asked for. What most
drawings of a digit have in common is read as that digit, and a drawing that is read as what was asked is rewarded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOOR = -6.0
"""Log-probabilities below this count as this."""


class Reader:
    """A linear classifier. A run makes one of these, calls it to grade, and `learn` once after each step."""

    def __init__(self, *, lr: float = 0.5, passes: int = 5, decay: float = 1e-3) -> None:
        self.lr, self.passes, self.decay = lr, passes, decay
        self.weights = torch.zeros(10, 65, dtype=torch.float64)

    def __call__(self, completions: list[np.ndarray], digit: list[int]) -> list[float]:
        """Log-probability of the digit that was asked for."""
        logp = (_inputs(completions) @ self.weights.T).log_softmax(-1)
        return logp[torch.arange(len(digit)), torch.tensor(digit)].clamp_min(FLOOR).tolist()

    def learn(self, completions: list[np.ndarray], digit: list[int]) -> None:
        """A few steps of gradient descent on the cross-entropy."""
        x, want = _inputs(completions), torch.nn.functional.one_hot(torch.tensor(digit), 10).double()
        for _ in range(self.passes):
            wrong = (x @ self.weights.T).softmax(-1) - want
            self.weights -= self.lr * (wrong.T @ x / len(x) + self.decay * self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]


def _inputs(completions: list[np.ndarray]) -> Tensor:
    """[N,65]: pixels between paper and ink, and a 1."""
    flat = torch.as_tensor(np.clip(np.asarray(completions, dtype=np.float64), -1.0, 1.0)).flatten(1)
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)
