"""Losses whose answers are known, and closures of both kinds on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

CURVATURE = torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0, 1.5], dtype=torch.float64)
OPTIMUM = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.5, 0.0], dtype=torch.float64)


def weights(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def quadratic(w: Tensor) -> Tensor:
    """Least, 0, at OPTIMUM."""
    return 0.5 * (CURVATURE[: w.numel()] * (w.flatten() - OPTIMUM[: w.numel()]) ** 2).sum()


def rosenbrock(w: Tensor) -> Tensor:
    """A curved valley; least, 0, at ones."""
    w = w.flatten()
    return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


def rastrigin(w: Tensor) -> Tensor:
    """Full of local minima a unit apart; least, 0, at 0."""
    return (w**2 + 10 * (1 - torch.cos(2 * torch.pi * w))).sum()


def logistic(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Regularised logistic regression of 60 points in 6 dimensions: strictly convex."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    y = (x @ OPTIMUM + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64) > 0).double()

    def loss(w: Tensor) -> Tensor:
        logits = x @ w.flatten()
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, y) + 0.05 * (w**2).sum()

    return loss


def closure_of(
    loss: Callable[..., Tensor], parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], float]:
    """What the optimizer asks for: the loss here, and its gradient unless the loss alone will do."""

    def closure() -> float:
        optimizer.zero_grad()
        if getattr(optimizer, "asks", None) == "loss":
            return float(loss(*parameters).detach())
        with torch.enable_grad():
            value = loss(*(p if p.requires_grad else p.requires_grad_() for p in parameters))
        value.backward()
        return float(value.detach())

    return closure


def minimise(
    optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], parameters: Sequence[Tensor], steps: int,
    lr: Callable[[float], float] | None = None,
) -> list[float]:  # fmt: skip
    """Take steps; `lr` gives a factor of the learning rate for the share of steps behind."""
    first = [group["lr"] for group in optimizer.param_groups]
    out = []
    for step in range(steps):
        for group, start in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = start * (lr(step / steps) if lr else 1.0)
        out.append(float(optimizer.step(closure_of(loss, parameters, optimizer))))
    return out


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().numpy().copy()
