"""Reg-GRPO: the policy's standardised log-ratios are fitted to the advantages (arXiv:2506.07464)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import loss
from coterie.reductions import group_sum, masked_mean


@loss(paper="arXiv:2506.07464", whole_groups=True, min_group=2)
def regression(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-4,
) -> Tensor:
    """(A_i - (rho_i - mean_g rho) / (std_g rho + eps))^2, to be minimised, rho_i the sum of log-ratios. [B]

    scale="none" does not divide. Gradient flows through mean and std, which are over the group's rollouts with weight
    (ddof 1); std has none where all rho are equal, as before the first step. Advantages a decision count by their mean.
    """
    live = mask & (per_decision(weights, mask) != 0)
    there = live.any(-1).to(logp.dtype)
    rho = finite_or_zero(logp - logp_old, live).sum(-1)
    n = group_sum(there, groups)
    centred = there * (rho - group_sum(rho, groups) / n.clamp_min(1.0))
    fitted = centred
    if scale == "std":
        variance = group_sum(centred**2, groups) / (n - 1).clamp_min(1.0)
        spread = variance > 0
        std = torch.where(spread, torch.where(spread, variance, torch.ones_like(variance)).sqrt(), 0.0)
        record("regression/std", std, live.any(-1))
        fitted = centred / (std + eps)
    error = there * (masked_mean(per_decision(advantages, mask), live) - fitted)
    record("regression/error", error**2, live.any(-1))
    return error**2
