"""SAGE-GRPO's SDE: Flow-GRPO's diffusion, integrated exactly over each step (arXiv:2603.21872)."""

import torch
from torch import Tensor

from coterie.pieces import sampler

CAP = 3e-3
"""The diffusion has no end at sigma = 1: there 1 - sigma is taken to be this."""


@sampler(paper="arXiv:2603.21872")
def sage_sde(
    x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor, *, noise: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Variance S = noise^2 ((sigma' - sigma) + log((1 - sigma') / (1 - sigma))), mean x + v dt + S/2 score with score
    -(x + (1 - sigma) v)/sigma, std sqrt(S).

    noise 0 is the ODE. Small steps have Flow-GRPO's std; at sigma = 1 this one has more (1 - sigma is taken as 0.003,
    and a step that stays above sigma = 0.997 draws no noise).
    """
    dt = after - sigma
    variance = (noise**2 * (dt + torch.log((1 - after) / (1 - sigma).clamp_min(CAP)))).clamp_min(0.0)
    score = -(x + (1 - sigma) * v) / sigma
    return x + v * dt + variance / 2 * score, variance.sqrt()
