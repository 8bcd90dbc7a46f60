"""Granular-GRPO's advantage: what a step's noise is worth by several ways to the end, added up (arXiv:2510.01982)."""

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_position, group_sum


@credit(paper="arXiv:2510.01982", min_group=2)
def granular_norm(
    rewards: Tensor, groups: Tensor, parent: Tensor, mask: Tensor, *, ddof: int = 1, eps: float = 1e-8
) -> Tensor:
    """Sum, over the rollouts forked from the same one and itself, of their rewards normalised among the rollouts of the
    group with the same first decision and the same place among their siblings. [B] -> [B]

    Siblings are told apart by the order of their rows, which is that of the strategy's strides. ddof and eps are those
    of group_norm, which this is where nothing forks and all begin at the same decision. Where all of a kind have equal
    rewards they add exactly 0.
    """
    sibling = group_position(torch.zeros_like(rewards), parent)
    count = int(sibling.max()) + 1 if len(sibling) else 1
    first = (mask.cumsum(-1) == 0).sum(-1)
    alike = (groups * (mask.shape[1] + 1) + first) * count + sibling
    record("granular/ends", group_count(parent, rewards.dtype))
    return group_sum(group_norm(rewards, alike, scale="std", ddof=ddof, eps=eps), parent)
