"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from coterie.pieces import optimizer


@optimizer()
def sgd(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-2, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """torch.optim.SGD: no state without momentum. lr may be a schedule."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
