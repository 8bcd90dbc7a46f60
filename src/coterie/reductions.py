"""Group and mask reductions shared by the pieces: vectorised, float64-safe, no Python loop over rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def _index(groups: Tensor) -> tuple[Tensor, int]:
    """Groups renumbered 0..n-1, so that any integer labels will do."""
    unique, inverse = torch.unique(groups, return_inverse=True)
    return inverse, len(unique)


def group_sum(x: Tensor, groups: Tensor) -> Tensor:
    """Sum over each rollout's group. [B] -> [B]"""
    index, n = _index(groups)
    return torch.zeros(n, dtype=x.dtype, device=x.device).index_add(0, index, x)[index]


def group_count(groups: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Size of each rollout's group. [B] -> [B]"""
    return group_sum(torch.ones(groups.shape, dtype=dtype, device=groups.device), groups)


def group_mean(x: Tensor, groups: Tensor) -> Tensor:
    """Mean over each rollout's group. [B] -> [B]"""
    return group_sum(x, groups) / group_count(groups, x.dtype)


def group_extreme(x: Tensor, groups: Tensor, largest: bool) -> Tensor:
    """Maximum or minimum over each rollout's group. [B] -> [B]"""
    index, n = _index(groups)
    out = torch.zeros(n, dtype=x.dtype, device=x.device)
    return out.scatter_reduce(0, index, x, "amax" if largest else "amin", include_self=False)[index]


def group_is_constant(x: Tensor, groups: Tensor) -> Tensor:
    """Whether all of a rollout's group have exactly the same value (max == min, never a tolerance). [B] -> [B] bool"""
    return group_extreme(x, groups, True) == group_extreme(x, groups, False)


def group_std(x: Tensor, groups: Tensor, ddof: int = 1) -> Tensor:
    """Standard deviation over each rollout's group; 0 where the group has no more than `ddof` members. [B] -> [B]"""
    n = group_count(groups, x.dtype)
    variance = group_sum((x - group_mean(x, groups)) ** 2, groups) / (n - ddof).clamp_min(1.0)
    return torch.where(n > ddof, variance, torch.zeros_like(variance)).sqrt()


def _sorted(x: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows group by group, ascending in x and then in row order; the groups' indices, sizes and first places there."""
    index, n = _index(groups)
    order = x.argsort(stable=True)
    order = order[index[order].argsort(stable=True)]
    size = torch.zeros(n, dtype=torch.long, device=x.device).index_add(0, index, torch.ones_like(index))
    return order, index, size, size.cumsum(0) - size


def group_position(x: Tensor, groups: Tensor) -> Tensor:
    """Place of each rollout in its group in ascending x, from 0; equal ones in row order. [B] -> [B] int"""
    order, index, _, first = _sorted(x, groups)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=x.device) - first[index[order]]
    return place


def group_ties(x: Tensor, groups: Tensor) -> Tensor:
    """Labels that rollouts share where they share the group and the value exactly: groups of ties. [B] -> [B] int"""
    order, index, _, _ = _sorted(x, groups)
    value, group = x[order], index[order]
    label = torch.zeros_like(order)
    label[order[1:]] = ((value[1:] != value[:-1]) | (group[1:] != group[:-1])).long().cumsum(0)
    return label


def group_rank(x: Tensor, groups: Tensor) -> Tensor:
    """Rank of each rollout in its group in ascending x, from 0; equal ones share the mean rank. [B] -> [B]"""
    return group_mean(group_position(x, groups).to(x.dtype), group_ties(x, groups))


def group_median(x: Tensor, groups: Tensor) -> Tensor:
    """Median over each rollout's group: the lower middle value where their number is even. [B] -> [B]"""
    order, index, size, first = _sorted(x, groups)
    return x[order[first + (size - 1) // 2]][index]


def whiten(x: Tensor, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Minus the mean, over the standard deviation + eps, of all of them; exactly 0 where all are equal. [B] -> [B]"""
    if len(x) <= ddof or bool(x.max() == x.min()):
        return torch.zeros_like(x)
    return (x - x.mean()) / (x.std(correction=ddof) + eps)


def turn_count(turn: Tensor, mask: Tensor) -> Tensor:
    """How many turns each rollout has; 0 where no decision is in one. [B,T] -> [B] int"""
    return torch.where(mask, turn, torch.full_like(turn, -1)).amax(-1) + 1


def at_turn(x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """The value of each decision's turn; 0 where masked or in no turn. [B,U], [B,T] -> [B,T]"""
    inside = mask & (turn >= 0)
    return torch.where(inside, x.gather(1, torch.where(inside, turn, 0)), x.new_zeros(()))


def turn_exists(turn: Tensor, mask: Tensor, width: int) -> Tensor:
    """Which of `width` turns each rollout has. [B,T] -> [B,U] bool"""
    return torch.arange(width, device=turn.device) < turn_count(turn, mask).unsqueeze(-1)


def returns_to_go(x: Tensor, there: Tensor, gamma: float) -> Tensor:
    """Discounted sum of what each turn and those after it gave; 0 for turns that are not there. [B,U] -> [B,U]"""
    given = torch.where(there, x, x.new_zeros(()))
    out, running = torch.zeros_like(given), x.new_zeros(len(x))
    for u in reversed(range(x.shape[1])):  # turns of an episode, a handful
        running = given[:, u] + gamma * running
        out[:, u] = running
    return out


def unbroken_returns(x: Tensor, there: Tensor, gamma: float, exact: float) -> Tensor:
    """Discounted sum of what each turn and those after it gave, up to the next that gave less than `exact`; such a turn
    has what it gave, and no earlier turn has a part in it. 0 for turns that are not there. [B,U] -> [B,U]
    """
    given = torch.where(there, x, x.new_zeros(()))
    out, carried = torch.zeros_like(given), x.new_zeros(len(x))
    for u in reversed(range(x.shape[1])):  # turns of an episode, a handful
        right = given[:, u] >= exact
        out[:, u] = given[:, u] + torch.where(right, gamma * carried, 0.0)
        carried = torch.where(right, out[:, u], 0.0)
    return out


def call_share(groups: Tensor, episode: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """One over the number of rollouts of the same group and episode. [B] -> [B]"""
    call = torch.unique(torch.stack([groups, episode], 1), dim=0, return_inverse=True)[1]
    return 1 / group_count(call, dtype)


def turn_mean(x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """Mean over the decisions of each decision's turn (those in none are one turn); 0 where masked. [B,T] -> [B,T]"""
    width = torch.where(mask, turn, 0).max() + 2
    label = torch.arange(len(turn), device=turn.device).unsqueeze(-1) * width + turn
    return torch.zeros_like(x).masked_scatter(mask, group_mean(x[mask], label[mask]))


def shared_prefixes(tokens: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """Labels that decisions of a group share where their rollouts agree up to and with them: the nodes of a tree of
    prefixes. -1 where masked. [B,T] -> [B,T] int

    Only decisions are compared, not what stands between them. Exact, without hashing: rows in lexical order stand next
    to those with which they share the longest beginning.
    """
    width = mask.shape[1]
    place = mask.cumsum(-1) - 1
    chosen = torch.full_like(tokens, -1, dtype=torch.long)
    chosen[mask.nonzero()[:, 0], place[mask]] = tokens[mask].long()
    paths, path = torch.unique(torch.cat([_index(groups)[0].unsqueeze(-1), chosen], 1), dim=0, return_inverse=True)
    parts = torch.ones_like(paths, dtype=torch.bool)
    parts[1:] = (paths[1:] != paths[:-1]).cumsum(-1) > 0
    node = parts.cumsum(0) * (width + 1) + torch.arange(width + 1, device=mask.device)
    return torch.where(mask, node[:, 1:][path].gather(1, place.clamp_min(0)), -1)


def last_decision(mask: Tensor) -> Tensor:
    """Which decision of each rollout is its last; none where it has none. [B,T] -> [B,T] bool"""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the decisions of each rollout; whatever stands in padding is ignored. [B,T] -> [B]"""
    return torch.where(mask, x, torch.zeros_like(x)).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the decisions of each rollout; 0 for a rollout that has none. [B,T] -> [B]"""
    return masked_sum(x, mask) / mask.sum(-1).clamp_min(1).to(x.dtype)


def combine(components: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of a rollout's reward components, leaving out those that are NaN; NaN where all are. [B] -> [B]"""
    stacked = torch.stack([components[name] * weights[name] for name in components])
    return torch.where(stacked.isnan().all(0), math.nan, torch.nansum(stacked, 0))
