"""TOPR: good rollouts are imitated, bad ones fade as the policy leaves them (arXiv:2503.14286)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import loss
from coterie.reductions import masked_sum


@loss(paper="arXiv:2503.14286", zero_without_advantage=True)
def topr(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    level: Literal["sequence", "token"] = "sequence",
) -> Tensor:
    """-sum_t w A logp, to be minimised, with w = 1 where A >= 0 and min(r, 1) where A < 0. [B]

    r is the ratio of the whole rollout, a product over its decisions, or with level="token" of each decision. w is
    detached. The sum is over a rollout's decisions, not their mean. A is meant to be the reward minus a constant, not
    minus the group's mean. A rollout that the policy has left is not pushed further, however long the run; one that it
    would now take more often is never pushed harder than on policy. Near the sampler nothing tapers: where the mean A
    is below 0, large steps push away whatever was sampled (topr/net_push).
    """
    a = per_decision(advantages, mask)
    gap = finite_or_zero(logp.detach() - logp_old, mask)
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True).expand(mask.shape)
    taper = torch.where(a < 0, gap.clamp_max(0.0).exp(), torch.ones_like(gap))
    record("topr/taper", taper, mask & (a < 0))
    record("topr/positive_share", (a > 0).to(gap.dtype), mask)
    record("topr/net_push", (taper * a).detach(), mask)
    return -masked_sum(taper * a * finite_or_zero(logp, mask), mask)
