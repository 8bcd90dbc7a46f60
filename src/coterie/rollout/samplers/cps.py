"""Coefficients-preserving sampling: a step's noise replaces predicted noise, none is added (arXiv:2509.05952)."""

import math

import torch
from torch import Tensor

from coterie.pieces import sampler


@sampler(paper="arXiv:2509.05952")
def cps(
    x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor, *, noise: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Mean (1 - sigma') x0hat + sqrt(sigma'^2 - std^2) nhat, std sigma' sin(noise pi/2): the coefficient of all noise
    together stays sigma'.

    noise (0 to 1) 0 is the ODE. The last step is without noise by itself. It is no limit of an SDE: std does not shrink
    with the step, and samples are sharper than the ODE's marginal.
    """
    std = after * torch.sin(torch.as_tensor(noise, dtype=x.dtype) * math.pi / 2)
    kept = (after**2 - std**2).clamp_min(0.0).sqrt()
    return (1 - after) * (x - sigma * v) + kept * (x + (1 - sigma) * v), std
