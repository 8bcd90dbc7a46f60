"""KL to the reference as a dense negative reward (RLHF's usual place; REINFORCE++, arXiv:2501.03262)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.kl import kl_estimate
from coterie.pieces import shaping


@shaping(paper="arXiv:2501.03262", writes="token_rewards")
def kl_reward(
    token_rewards: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.001,
    estimator: Literal["k1", "k2", "k3"] = "k1",
) -> Tensor:
    """Subtract coef * KL estimate from every decision's reward. [B,T] -> [B,T]

    k1 = logp_old - logp_ref is the unbiased choice here. A scalar baseline sees the sum over the rollout's decisions.
    """
    return token_rewards - coef * finite_or_zero(kl_estimate(logp_old - logp_ref, estimator), mask)
