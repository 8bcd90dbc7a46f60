"""The importance-weighted surrogate without a trust region."""

from torch import Tensor

from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(zero_without_advantage=True)
def unclipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    """r A, to be maximised. [B,T] or [B], as the ratio. On policy its gradient is REINFORCE's."""
    return ratio * match(ratio, advantages)
