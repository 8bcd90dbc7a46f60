"""What gradients run through and the optimizer moves. Here: the policy itself, which also samples and is saved.

`coterie.scale` has one whose weights, gradients and optimizer state are spread over processes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.optim.master import MasterWeights
from coterie.policies.base import Policy
from coterie.rollouts import Rollouts

if TYPE_CHECKING:
    from coterie.workers import Alone


class Learner:
    """A policy that is its own learner."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer is made for."""
        return self.policy.trainable_parameters()

    def score(self, rollouts: Rollouts, want: Collection[str]) -> dict[str, Tensor]:
        """The policy's `score`, with gradient to `parameters`."""
        return self.policy.score(rollouts, want)

    def idle(self, passes: int) -> int:
        """How many passes without rollouts must follow `passes` with them, so that processes keep step."""
        return 0

    def sum_gradients(self, workers: Alone) -> None:
        """Put the sum over processes in the place of each gradient."""
        workers.sum_gradients(self.parameters())

    def gradient_norm(self, limit: float) -> float:
        """Clip the gradient to a norm; returns what it was."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters(), limit))

    def stepped(self) -> None:
        """The optimizer has moved the parameters: let the policy be what they are."""

    def adopt(self, optimizer: Any) -> None:
        """Something else has moved the policy: let parameters and optimizer go on from there."""
        if isinstance(optimizer, MasterWeights):
            optimizer.adopt()

    def state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state as one process has it."""
        return optimizer.state_dict()

    def restore(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Put back what `state` returned, in whichever number of processes."""
        optimizer.load_state_dict(state)
