"""Entropy bonus: keep the policy from deciding too early."""

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.pieces import term


@term()
def entropy_bonus(entropy: Tensor, mask: Tensor, *, coef: float = 0.01) -> Tensor:
    """-coef * entropy of every decision, added to the loss. [B,T]. Gradient flows through the policy's distribution."""
    return -coef * finite_or_zero(entropy, mask)
