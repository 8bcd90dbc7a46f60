"""Flow-GRPO's SDE: more noise at high noise levels, the ODE's marginals (arXiv:2505.05470)."""

import torch
from torch import Tensor

from coterie.pieces import sampler


@sampler(paper="arXiv:2505.05470")
def flow_sde(
    x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor, *, noise: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Diffusion g = noise sqrt(sigma / (1 - sigma)): mean x + v dt + g^2/2 (x + (1 - sigma) v)/sigma dt, std
    g sqrt(-dt).

    At sigma = 1, where g has no end, `cap` stands for sigma in it. noise 0 is the ODE. As steps become many the
    marginal of every noise level is that of the ODE.
    """
    dt = after - sigma
    g2 = noise**2 * sigma / (1 - torch.where(sigma >= 1, cap, sigma))
    drift = v + g2 * (x + (1 - sigma) * v) / (2 * sigma)
    return x + drift * dt, (g2 * -dt).sqrt()
