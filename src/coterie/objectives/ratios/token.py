"""PPO's ratio: one a decision (arXiv:1707.06347)."""

from torch import Tensor

from coterie.pieces import ratio

LOG_LIMIT = 20.0
"""Log-ratios are limited to this size, so that an absurd rollout gives a large finite ratio, never inf or NaN."""


@ratio(paper="arXiv:1707.06347")
def token(logp: Tensor, logp_old: Tensor, mask: Tensor, *, limit: float = LOG_LIMIT) -> Tensor:
    """exp(logp - logp_old) of every decision; 1 where masked. [B,T] -> [B,T]. Gradient flows through logp.

    Log-ratios are clamped to +-limit before exp, with no gradient beyond: StableReinforce's pre-clip is log 1000
    (arXiv:2505.02835).
    """
    return (logp - logp_old).masked_fill(~mask, 0.0).clamp(-limit, limit).exp()
