"""DRPO: right rollouts are weighted by length among themselves, and set against the wrong ones (arXiv:2510.04474)."""

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import loss
from coterie.reductions import group_extreme, group_sum, masked_mean, masked_sum


@loss(paper="arXiv:2510.04474", whole_groups=True, min_group=2)
def drpo(
    logp: Tensor,
    logp_old: Tensor,
    rewards: Tensor,
    lengths: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    budget: int,
    *,
    lam: float = 0.1,
    tau: float = 10.0,
    beta: float = 1000.0,
    delta: float = 1e-4,
    above: float = 0.5,
    max_length: int | None = None,
) -> Tensor:
    """The loss of each rollout's group, to be minimised: -J + sg(beta max(KL - delta, 0)) KL. [B]

    J = sum w s / sum w over the right rollouts - tau log mean exp(s / tau) over the wrong ones, with s the mean logp of
    a rollout's decisions and w = exp((1 - length / max_length) / lam): the smaller lam, the shorter. A rollout is right
    if its reward is greater than `above`. J is 0 for groups all right or all wrong. KL is the mean logp_old - logp of
    the group's decisions. max_length defaults to the completion budget of the run. Rollouts and decisions without
    weight are not there. Average it over groups: objective.aggregation.scope=group.
    """
    live = mask & (per_decision(weights, mask) != 0)
    there, s = live.any(-1), masked_mean(logp, live)
    right, wrong = there & (rewards > above), there & (rewards <= above)
    both = (group_sum(right.to(s.dtype), groups) > 0) & (group_sum(wrong.to(s.dtype), groups) > 0)

    longest = budget if max_length is None else max_length
    w = (_over(-lengths.to(s.dtype) / (lam * longest), right, groups)).exp()
    liked = group_sum(w * s, groups) / group_sum(w, groups).clamp_min(1.0)
    top = _top(s.detach() / tau, wrong, groups)
    mean = group_sum(_over(s / tau, wrong, groups).exp(), groups) / group_sum(wrong.to(s.dtype), groups).clamp_min(1.0)
    disliked = tau * (top + torch.where(both, mean, torch.ones_like(mean)).log())

    decisions = group_sum(live.sum(-1).to(s.dtype), groups).clamp_min(1.0)
    kl = group_sum(masked_sum(logp_old - logp, live), groups) / decisions
    excess = (kl.detach() - delta).clamp_min(0.0)
    record("drpo/contrast_share", both, there)
    record("drpo/kl", kl, there)
    record("drpo/constrained_share", excess > 0, there)
    return beta * excess * kl - torch.where(both, liked - disliked, torch.zeros_like(liked))


def _top(x: Tensor, chosen: Tensor, groups: Tensor) -> Tensor:
    """The largest chosen x of each rollout's group, 0 where none is chosen. [B]"""
    top = group_extreme(x.masked_fill(~chosen, -torch.inf), groups, largest=True)
    return torch.where(top.isfinite(), top, torch.zeros_like(top))


def _over(x: Tensor, chosen: Tensor, groups: Tensor) -> Tensor:
    """x below the largest chosen x of the group, -inf where not chosen: its exp is at most 1. [B]"""
    return (x - _top(x.detach(), chosen, groups)).masked_fill(~chosen, -torch.inf)
