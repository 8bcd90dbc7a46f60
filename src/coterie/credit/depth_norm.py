"""BranchGRPO's advantage: each edge of a tree against the edges of the same depth (arXiv:2509.06040)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_extreme, group_is_constant, group_mean, group_sum


@credit(paper="arXiv:2509.06040", min_group=2, shape="B T")
def depth_norm(
    rewards: Tensor,
    groups: Tensor,
    parent: Tensor,
    branch: Tensor,
    mask: Tensor,
    *,
    ddof: int = 1,
    eps: float = 1e-8,
) -> Tensor:
    """Value of the node that a decision leads to, minus the mean of the group's nodes of that depth, over their
    standard deviation + eps. [B] -> [B,T]

    The depth is the place of the decision, a node the rollouts that share it, its value their mean reward. Every node
    counts once, however many rollouts are below it. A node alone at its depth gets exactly 0, equal ones and masked
    decisions too. Without forks this is group_norm at every decision.
    """
    own, width = owners(parent, branch, mask.shape[1]), mask.shape[1]
    row, place = mask.nonzero(as_tuple=True)
    node, depth = (own * width)[row, place] + place, groups[row] * width + place
    # Means of equal rewards in another order must not differ by rounding that a small deviation would blow up.
    reward = rewards[row].double()
    if not len(node):
        return rewards.new_zeros(mask.shape)
    value = group_mean(reward, node)
    value = value.clamp(group_extreme(reward, node, False), group_extreme(reward, node, True))
    once = 1 / group_count(node, value.dtype)
    count = group_sum(once, depth)
    gap = value - group_sum(value * once, depth) / count
    variance = group_sum(gap**2 * once, depth) / (count - ddof).clamp_min(1.0)
    alone = (count < ddof + 0.5) | group_is_constant(value, depth)
    advantage = torch.where(alone, 0.0, gap / (variance.sqrt() + eps))
    record("tree/nodes", count)
    record("tree/shared_share", (once < 1).to(rewards.dtype))
    return rewards.new_zeros(mask.shape).masked_scatter(mask, advantage.to(rewards.dtype))


def owners(parent: Tensor, branch: Tensor, width: int) -> Tensor:
    """The rollout that took each decision first: the parent before the fork, or whoever took it there. [B] -> [B,T]"""
    rows = torch.arange(len(parent), device=parent.device)
    own = torch.arange(width, device=parent.device) >= branch.unsqueeze(-1)
    owner = torch.where(own, rows.unsqueeze(-1), parent.unsqueeze(-1))
    while True:  # as often as forks are nested
        further = owner.gather(0, owner)
        if torch.equal(further, owner):
            return owner
        owner = further
