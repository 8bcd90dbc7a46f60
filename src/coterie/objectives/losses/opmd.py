"""OPMD: Kimi's online policy mirror descent as regularised group-relative REINFORCE (arXiv:2509.24203)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import loss
from coterie.reductions import masked_sum


@loss(paper="arXiv:2509.24203")
def opmd(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau: float = 1.0,
    level: Literal["sequence", "token"] = "sequence",
) -> Tensor:
    """(-A sum_t logp + tau/2 (sum_t (logp - logp_old))^2) / (1 + tau), to be minimised. [B], or [B,T] at token level

    No ratio, no clipping: the square keeps the policy near the one that sampled. level="token" squares each decision's
    own log-ratio instead of the rollout's sum. tau=0 is REINFORCE.
    """
    d = finite_or_zero(logp - logp_old, mask)
    if level == "token":
        policy = -per_decision(advantages, mask) * finite_or_zero(logp, mask)
        return (policy + 0.5 * tau * d * d) / (1.0 + tau)
    policy = -masked_sum(per_decision(advantages, mask) * finite_or_zero(logp, mask), mask)
    return (policy + 0.5 * tau * d.sum(-1) ** 2) / (1.0 + tau)
