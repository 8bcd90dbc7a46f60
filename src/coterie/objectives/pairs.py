"""What preference losses share: who is better and who is worse in a group, and how sure the policy is of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from coterie.columns import finite_or_zero, per_decision
from coterie.reductions import group_extreme, group_sum, masked_mean, masked_sum

Length = Literal["sum", "mean"]
Link = Literal["sigmoid", "ipo", "hinge"]


class Sides(NamedTuple):
    """`best` and `worst` of each group, and whether a rollout's group has `both`. [B] bool each"""

    best: Tensor
    worst: Tensor
    both: Tensor


def live_decisions(mask: Tensor, weights: Tensor) -> Tensor:
    """Decisions that have weight. [B,T] bool"""
    return mask & (per_decision(weights, mask) != 0)


def sides(order: Tensor, there: Tensor, groups: Tensor) -> Sides:
    """The rollouts of the largest and of the smallest `order` among those `there`; all that tie belong to a side.

    A group in which all are equal, or fewer than two are there, has neither. [B]
    """
    top = group_extreme(order.masked_fill(~there, -torch.inf), groups, largest=True)
    low = group_extreme(order.masked_fill(~there, torch.inf), groups, largest=False)
    both = top > low
    return Sides(there & both & (order == top), there & both & (order == low), both)


def log_ratios(logp: Tensor, logp_ref: Tensor, live: Tensor, length: Length) -> Tensor:
    """log pi/ref of each rollout: over its live decisions, summed or averaged. [B,T] -> [B]"""
    d = finite_or_zero(logp - logp_ref, live)
    return masked_sum(d, live) if length == "sum" else masked_mean(d, live)


def mean_over(x: Tensor, chosen: Tensor, groups: Tensor) -> Tensor:
    """Mean of x over the chosen rollouts of each rollout's group; 0 where none is. [B] -> [B]"""
    count = group_sum(chosen.to(x.dtype), groups)
    return group_sum(torch.where(chosen, x, torch.zeros_like(x)), groups) / count.clamp_min(1.0)


def contrast(x: Tensor, two: Sides, groups: Tensor) -> Tensor:
    """Mean of x over the best minus its mean over the worst, 0 where a group has no sides. [B] -> [B]"""
    return mean_over(x, two.best, groups) - mean_over(x, two.worst, groups)


def link_loss(h: Tensor, beta: float, link: Link, smoothing: float = 0.0) -> Tensor:
    """Loss of the difference h of two log-ratios, each to be minimised. [B] -> [B]

    sigmoid: -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h), s the smoothing; ipo: (h - 1/(2 beta))^2; hinge:
    max(0, 1 - beta h). The last two mix the loss of -h in likewise.
    """

    def one(x: Tensor) -> Tensor:
        if link == "ipo":
            return (x - 1 / (2 * beta)) ** 2
        return -logsigmoid(beta * x) if link == "sigmoid" else (1 - beta * x).clamp_min(0.0)

    return one(h) if smoothing == 0 else (1 - smoothing) * one(h) + smoothing * one(-h)
