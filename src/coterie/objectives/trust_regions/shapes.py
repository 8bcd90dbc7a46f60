"""Advantages in the shape of the ratio they multiply."""

from torch import Tensor

from coterie.errors import ShapeError


def match(ratio: Tensor, advantages: Tensor) -> Tensor:
    """Advantages [B] spread over a [B,T] ratio; a [B] ratio takes [B] advantages only."""
    if ratio.dim() == 2 and advantages.dim() == 1:
        return advantages.unsqueeze(-1).expand_as(ratio)
    if ratio.dim() == 1 and advantages.dim() == 2:
        raise ShapeError(
            "a ratio a rollout [B] cannot take an advantage a decision [B,T]",
            hint="use objective.ratio=sequence_token (GSPO-token) or token with token-level credit",
        )
    return advantages
