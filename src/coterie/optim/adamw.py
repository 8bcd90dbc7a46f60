"""AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from coterie.pieces import optimizer


@optimizer(paper="arXiv:1711.05101")
def adamw(
    parameters: Iterable[torch.nn.Parameter],
    *,
    lr: float = 1e-6,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """torch.optim.AdamW. lr may be a schedule: optimizer.lr='{from: 0, to: 1e-6, over: 20}' warms up."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
