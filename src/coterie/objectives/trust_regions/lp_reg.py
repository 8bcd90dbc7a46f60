"""Lp-Reg: unlikely tokens of bad rollouts are held near a distribution without noise (arXiv:2510.03222)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.trust_regions.ppo_clip import ppo_clip
from coterie.pieces import trust_region
from coterie.reductions import group_count, group_position


@trust_region(paper="arXiv:2510.03222", whole_groups=True, zero_without_advantage=True)
def lp_reg(
    ratio: Tensor,
    advantages: Tensor,
    logp: Tensor,
    logp_min_p: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    min_p: float = 0.02,
    share: float = 0.01,
    coef: float = 1.0,
    eps_low: float = 1.0,
    eps_high: float = 9.0,
) -> Tensor:
    """r A - coef k3 on unlikely decisions of bad rollouts that min_p would keep, PPO's clip elsewhere; maximise. [B,T]

    Of a group's decisions with A < 0 the `share` with the lowest logp is looked at, if that is at least two of them.
    Those below logp_min_p, the log-prob after tokens under min_p times the likeliest one's probability were cut, are
    protected: k3 = e^d - d - 1 with d = logp_min_p - logp, at most 10, pulls them back up, and they are not clipped.
    A decision that was cut itself is noise (its logp_min_p is -inf) and not protected. Choice and logp_min_p are
    detached. share=0 is ppo_clip.
    """
    a, r = per_decision(advantages, mask), per_decision(ratio, mask)
    bad = mask & (a < 0)
    owner = groups.unsqueeze(-1).expand(mask.shape)[bad]
    looked = (group_count(owner, torch.float64) * share + 1e-9).floor()
    low = (group_position(logp.detach()[bad], owner) < looked) & (looked > 1)
    chosen = torch.zeros_like(mask).masked_scatter(bad, low) & (logp.detach() < logp_min_p)
    d = finite_or_zero(logp_min_p - logp, chosen)
    k3 = (d.clamp_max(20.0).exp() - d - 1.0).clamp_max(10.0)
    record("lp_reg/protected_share", chosen)
    record("lp_reg/k3", k3, chosen)
    return torch.where(chosen, r * a - coef * k3, ppo_clip(r, a, eps_low=eps_low, eps_high=eps_high))
