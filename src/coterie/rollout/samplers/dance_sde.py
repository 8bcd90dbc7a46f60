"""DanceGRPO's SDE: the same diffusion at every noise level (arXiv:2505.07818)."""

import torch
from torch import Tensor

from coterie.pieces import sampler


@sampler(paper="arXiv:2505.07818")
def dance_sde(
    x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor, *, noise: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Diffusion g = noise: mean x + v dt - g^2/2 score dt with score -(x + (1 - sigma) v)/sigma, std g sqrt(-dt).

    noise 0 is the ODE. As steps become many the marginal of every noise level is that of the ODE; with few, the last
    steps leave noise of about their own std in the sample.
    """
    dt = after - sigma
    score = -(x + (1 - sigma) * v) / sigma
    return x + (v - noise**2 / 2 * score) * dt, noise * torch.sqrt(-dt)
