"""Euler's step of the probability-flow ODE: no noise, no decision."""

from torch import Tensor

from coterie.pieces import sampler


@sampler()
def ode(x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """x + v dt, without noise."""
    return x + v * (after - sigma), sigma.new_zeros(sigma.shape)
