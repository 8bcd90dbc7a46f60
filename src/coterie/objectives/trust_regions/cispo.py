"""CISPO: the clipped importance weight is detached, so clipped decisions still learn (arXiv:2506.13585)."""

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.objectives.trust_regions.shapes import match
from coterie.pieces import trust_region


@trust_region(paper="arXiv:2506.13585", zero_without_advantage=True)
def cispo(
    ratio: Tensor, advantages: Tensor, logp: Tensor, mask: Tensor, *, max_ratio: float = 5.0, min_ratio: float = 0.0
) -> Tensor:
    """sg(clip(r, min_ratio, max_ratio)) A logp, to be maximised. [B,T]

    Bounds are ratio values, not distances from 1 (verl and the paper write 1 + eps_high). The weight is detached.
    The value is not a surrogate of the return: only its gradient means anything.
    """
    weight = ratio.detach().clamp(min_ratio, max_ratio)
    weight = weight if weight.dim() == 2 else weight.unsqueeze(-1).expand(mask.shape)
    record("clip/fraction", (ratio.detach() > max_ratio) | (ratio.detach() < min_ratio))
    return weight * match(weight, advantages) * finite_or_zero(logp, mask)
