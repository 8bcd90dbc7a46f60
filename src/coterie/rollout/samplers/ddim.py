"""The DDIM step with noise, as DDPO trains it, at a flow's coefficients (arXiv:2010.02502, arXiv:2305.13301)."""

from torch import Tensor

from coterie.pieces import sampler


@sampler(paper="arXiv:2305.13301")
def ddim(
    x: Tensor, v: Tensor, sigma: Tensor, after: Tensor, cap: Tensor, *, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean (1 - sigma') x0hat + sqrt(sigma'^2 - std^2) nhat with std noise sigma'/sigma sqrt(sigma^2 - ((1 - sigma)
    sigma' / (1 - sigma'))^2), noise times the posterior's of the forward process.

    noise (DDIM's eta, 0 to 1): 0 is the ODE in DDIM's form, 1 is ancestral sampling. With coefficients sqrt(abar) and
    sqrt(1 - abar) in place of 1 - sigma and sigma it is DDIM's own step: both are one process, scaled. The last step is
    without noise by itself.
    """
    ratio = (1 - sigma) * after / (1 - after)
    std = noise * after / sigma * (sigma**2 - ratio**2).clamp_min(0.0).sqrt()
    kept = (after**2 - std**2).clamp_min(0.0).sqrt()
    return (1 - after) * (x - sigma * v) + kept * (x + (1 - sigma) * v), std
