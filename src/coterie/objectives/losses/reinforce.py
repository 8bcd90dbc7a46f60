"""REINFORCE and the group-relative REINFORCE family: range masks in place of importance weights (arXiv:2509.24203)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.ratios.sequence import sequence
from coterie.objectives.ratios.token import LOG_LIMIT, token
from coterie.pieces import loss


@loss(paper="arXiv:2509.24203", zero_without_advantage=True)
def reinforce(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Literal["none", "one_side", "two_side", "ring"] = "none",
    weight: Literal["none", "ratio", "advantage"] = "none",
    level: Literal["token", "sequence"] = "token",
    temperature: float = 1.0,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    ring_low: float = 0.6,
    ring_high: float = 2.0,
) -> Tensor:
    """-w A logp on the decisions whose ratio is in range, to be minimised. [B,T]

    w is 1, the ratio, or exp(A / temperature) by "advantage", which lets good rollouts weigh more (RED-Weight). It and
    the range test are detached. level: the ratio is the decision's, or GSPO's of its rollout. one_side keeps (A >= 0
    and r <= 1+eps_high) or (A <= 0 and r >= 1-eps_low); two_side keeps 1-eps_low <= r <= 1+eps_high; ring adds (A >= 0
    and r <= 1-ring_low) and (A <= 0 and r >= 1+ring_high) to two_side. one_side with the ratio as weight has exactly
    PPO-clip's gradient, and by rollout under a sequence mean GSPO's. A very high temperature is no weight.
    """
    a = per_decision(advantages, mask)
    of = token if level == "token" else sequence
    r = per_decision(of(logp.detach(), logp_old, mask), mask)
    up, down = a >= 0, a <= 0
    inside = (r >= 1 - eps_low) & (r <= 1 + eps_high)
    keep = {
        "none": torch.ones_like(mask),
        "one_side": (up & (r <= 1 + eps_high)) | (down & (r >= 1 - eps_low)),
        "two_side": inside,
        "ring": inside | (up & (r <= 1 - ring_low)) | (down & (r >= 1 + ring_high)),
    }[clip]
    record("clip/fraction", ~keep)
    w = torch.ones_like(r)
    if weight == "ratio":
        w = r
    elif weight == "advantage":
        w = (a / temperature).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
        record("weights/by_advantage", w, keep & mask)
    w = w * keep
    return -w * a * finite_or_zero(logp, mask)
