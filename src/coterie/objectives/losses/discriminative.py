"""DisCO and DRPO: right rollouts are set against the wrong ones, within a bound on the KL (arXiv:2505.12366)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.kl import kl_estimate
from coterie.metrics import record
from coterie.objectives.ratios.token import token
from coterie.pieces import loss
from coterie.reductions import group_extreme, group_sum, masked_mean, masked_sum


@loss(paper="arXiv:2505.12366", whole_groups=True, min_group=2)
def discriminative(
    logp: Tensor,
    logp_old: Tensor,
    rewards: Tensor,
    lengths: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    budget: int,
    *,
    lam: float | None = None,
    tau: float | None = 10.0,
    score: Literal["logp", "ratio"] = "logp",
    kl: Literal["k1", "k3"] = "k1",
    beta: float = 1000.0,
    delta: float = 1e-4,
    above: float = 0.5,
    max_length: int | None = None,
) -> Tensor:
    """The loss of each rollout's group, to be minimised: -J + sg(beta max(KL - delta, 0)) KL. [B]

    J = sum w s / sum w over the right rollouts - tau log mean exp(s / tau) over the wrong ones, s the mean logp (or
    score="ratio") of a rollout's decisions. tau=None takes the mean over the wrong ones, its limit. w is 1, or with lam
    exp((1 - length / max_length) / lam): the smaller, the shorter (DRPO, arXiv:2510.04474); max_length defaults to the
    completion budget. A rollout is right if its reward is greater than `above`. J is 0 for groups all right or all
    wrong. KL is the mean over the group's decisions of logp_old - logp, or its k3 with kl="k3". Its factor, w and
    nothing else are detached. Rollouts and decisions without weight are not there. Average it over groups:
    objective.aggregation.scope=group.
    """
    live = mask & (per_decision(weights, mask) != 0)
    there, s = live.any(-1), masked_mean(logp if score == "logp" else token(logp, logp_old, live), live)
    right, wrong = there & (rewards > above), there & (rewards <= above)
    both = (group_sum(right.to(s.dtype), groups) > 0) & (group_sum(wrong.to(s.dtype), groups) > 0)

    w = right.to(s.dtype)
    if lam is not None:
        longest = budget if max_length is None else max_length
        w = _over(-lengths.to(s.dtype) / (lam * longest), right, groups).exp()
    liked = group_sum(w * s, groups) / group_sum(w, groups).clamp_min(1.0)
    n_wrong = group_sum(wrong.to(s.dtype), groups).clamp_min(1.0)
    if tau is None:
        disliked = group_sum(torch.where(wrong, s, torch.zeros_like(s)), groups) / n_wrong
    else:
        top = _top(s.detach() / tau, wrong, groups)
        mean = group_sum(_over(s / tau, wrong, groups).exp(), groups) / n_wrong
        disliked = tau * (top + torch.where(both, mean, torch.ones_like(mean)).log())

    decisions = group_sum(live.sum(-1).to(s.dtype), groups).clamp_min(1.0)
    moved = kl_estimate(finite_or_zero(logp_old - logp, live), kl)
    distance = group_sum(masked_sum(moved, live), groups) / decisions
    excess = (distance.detach() - delta).clamp_min(0.0)
    record("contrast/share", both, there)
    record("contrast/kl", distance, there)
    record("contrast/constrained_share", excess > 0, there)
    return beta * excess * distance - torch.where(both, liked - disliked, torch.zeros_like(liked))


def _top(x: Tensor, chosen: Tensor, groups: Tensor) -> Tensor:
    """The largest chosen x of each rollout's group, 0 where none is chosen. [B]"""
    top = group_extreme(x.masked_fill(~chosen, -torch.inf), groups, largest=True)
    return torch.where(top.isfinite(), top, torch.zeros_like(top))


def _over(x: Tensor, chosen: Tensor, groups: Tensor) -> Tensor:
    """x below the largest chosen x of the group, -inf where not chosen: its exp is at most 1. [B]"""
    return (x - _top(x.detach(), chosen, groups)).masked_fill(~chosen, -torch.inf)
