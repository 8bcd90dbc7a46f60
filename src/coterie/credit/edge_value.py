"""SPO-tree's advantage: the value of each node of a tree of rollouts minus its parent's (arXiv:2505.23564)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import at_turn, group_extreme, group_mean, group_std, turn_count


@credit(paper="arXiv:2505.23564", shape="B T")
def edge_value(
    rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    state_key: Tensor,
    mask: Tensor,
    *,
    scale: Literal["none", "std"] = "none",
    ddof: int = 0,
    eps: float = 1e-8,
) -> Tensor:
    """Value of the node that each decision's segment leads to, minus that of the node it starts from. [B] -> [B,T]

    A leaf is worth its reward, a node the mean over its children, not over its leaves. state_key [B,U] names the node
    that each segment starts from; rollouts that agree up to there have one past. scale: "std" divides by the standard
    deviation of the siblings' values + eps. Equal siblings, and an only child, get exactly 0.
    """
    count = turn_count(turn, mask)
    rows = torch.arange(len(rewards), device=groups.device)
    width = min(state_key.shape[1], int(count.max())) if len(count) else 0
    nodes, node = [], torch.unique(groups, return_inverse=True)[1]
    for u in range(width):  # levels of the tree, a handful
        inside = count > u
        keys = torch.stack([node, torch.where(inside, state_key[:, u], rows), inside.long()], 1)
        node = torch.unique(keys, dim=0, return_inverse=True)[1]
        nodes.append(node)
    value = rewards
    edges = rewards.new_zeros(len(rewards), max(width, 1))
    for u in reversed(range(width)):
        inside = count > u
        child = torch.where(count > u + 1, nodes[u + 1] if u + 1 < width else rows, rows + len(rows))
        first = _first_of_each(child)
        use = inside & first
        if not bool(use.any()):
            continue
        siblings, of_child = nodes[u][use], value[use]
        mean = group_mean(of_child, siblings)
        mean = mean.clamp(group_extreme(of_child, siblings, False), group_extreme(of_child, siblings, True))
        spread = group_std(of_child, siblings, ddof)
        at, std = (rewards.new_zeros(len(rows)).scatter(0, siblings, x) for x in (mean, spread))
        gain = value - at[nodes[u]]
        edges[:, u] = torch.where(inside, gain / (std[nodes[u]] + eps) if scale == "std" else gain, edges[:, u])
        record("tree/edge_gain", gain[use].abs())
        value = torch.where(inside, at[nodes[u]], value)
    return at_turn(edges, turn, mask)


def _first_of_each(label: Tensor) -> Tensor:
    """Whether a row is the first that has its label. [B] -> [B] bool"""
    index = torch.unique(label, return_inverse=True)[1]
    rows = torch.arange(len(label), device=label.device)
    first = torch.full_like(rows, len(rows)).scatter_reduce(0, index, rows, "amin")
    return first[index] == rows
