"""PPO's ratio: one a decision (arXiv:1707.06347)."""

from torch import Tensor

from coterie.pieces import ratio

LOG_LIMIT = 20.0
"""Log-ratios are limited to this size, so that an absurd rollout gives a large finite ratio, never inf or NaN."""


@ratio(paper="arXiv:1707.06347")
def token(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """exp(logp - logp_old) of every decision; 1 where masked. [B,T] -> [B,T]. Gradient flows through logp."""
    return (logp - logp_old).masked_fill(~mask, 0.0).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
