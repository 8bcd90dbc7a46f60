"""TRPA: in every pair of a prompt the better rollout is preferred, near the policy that sampled (arXiv:2504.04524)."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from coterie.columns import finite_or_zero, per_decision
from coterie.kl import kl_estimate
from coterie.metrics import record
from coterie.pieces import loss
from coterie.reductions import group_sum, masked_mean, masked_sum


@loss(paper="arXiv:2504.04524", whole_groups=True, min_group=2)
def trpa(
    logp: Tensor,
    logp_ref: Tensor,
    logp_old: Tensor,
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    anisotropy: float = 2.5,
    above: float = 0.5,
    coef: float = 1e-3,
) -> Tensor:
    """The loss of each rollout's group, to be minimised: mean over pairs of -log sigmoid(beta a (h_i - h_j)) + KL. [B]

    A pair is two rollouts of a group with reward i greater than reward j; h is the mean over a rollout's decisions of
    logp - logp_ref. a is `anisotropy` where reward i is greater than `above`, else 1. The KL is coef times the mean k3
    of the group's decisions to the policy that sampled. Gradient through logp alone; rollouts and decisions without
    weight are not there. A group with one level has the KL alone. Average over groups:
    objective.aggregation.scope=group.
    """
    live = mask & (per_decision(weights, mask) != 0)
    there, h = live.any(-1), masked_mean(logp - logp_ref, live)
    pair = (groups.unsqueeze(1) == groups) & there.unsqueeze(1) & there & (rewards.unsqueeze(1) > rewards)
    a = torch.where(rewards > above, torch.full_like(h, anisotropy), torch.ones_like(h))
    margin = beta * a.unsqueeze(1) * (h.unsqueeze(1) - h)
    liked = torch.where(pair, softplus(-margin), torch.zeros_like(margin)).sum(-1)
    pairs = group_sum(pair.sum(-1).to(h.dtype), groups)

    kl = kl_estimate(finite_or_zero(logp - logp_old, live), "k3")
    decisions = group_sum(live.sum(-1).to(h.dtype), groups).clamp_min(1.0)
    near = group_sum(masked_sum(kl, live), groups) / decisions
    record("trpa/pair_share", (pairs > 0).to(h.dtype), there)
    record("trpa/right_order", pair & (margin > 0), pair)
    record("trpa/kl_old", kl, live)
    return group_sum(liked, groups) / pairs.clamp_min(1.0) + coef * near
