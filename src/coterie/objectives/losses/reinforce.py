"""REINFORCE and the group-relative REINFORCE family: range masks in place of importance weights (arXiv:2509.24203)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.ratios.token import token
from coterie.pieces import loss


@loss(paper="arXiv:2509.24203", zero_without_advantage=True)
def reinforce(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Literal["none", "one_side", "two_side", "ring"] = "none",
    weight: Literal["none", "ratio"] = "none",
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    ring_low: float = 0.6,
    ring_high: float = 2.0,
) -> Tensor:
    """-w A logp on the decisions whose ratio is in range, to be minimised. [B,T]

    w (1 or the ratio) and the range test are detached. one_side keeps (A >= 0 and r <= 1+eps_high) or (A <= 0 and
    r >= 1-eps_low); two_side keeps 1-eps_low <= r <= 1+eps_high; ring adds (A >= 0 and r <= 1-ring_low) and (A <= 0
    and r >= 1+ring_high) to two_side. one_side with the ratio as weight has exactly PPO-clip's gradient.
    """
    a = per_decision(advantages, mask)
    r = token(logp.detach(), logp_old, mask)
    up, down = a >= 0, a <= 0
    inside = (r >= 1 - eps_low) & (r <= 1 + eps_high)
    keep = {
        "none": torch.ones_like(mask),
        "one_side": (up & (r <= 1 + eps_high)) | (down & (r >= 1 - eps_low)),
        "two_side": inside,
        "ring": inside | (up & (r <= 1 - ring_low)) | (down & (r >= 1 + ring_high)),
    }[clip]
    record("clip/fraction", ~keep)
    w = (r if weight == "ratio" else torch.ones_like(r)) * keep
    return -w * a * finite_or_zero(logp, mask)
