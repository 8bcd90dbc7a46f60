"""Group and mask reductions shared by the pieces: vectorised, float64-safe, no Python loop over rollouts."""

from __future__ import annotations

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


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the decisions of each rollout; whatever stands in padding is ignored. [B,T] -> [B]"""
    return torch.where(mask, x, torch.zeros_like(x)).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the decisions of each rollout; 0 for a rollout that has none. [B,T] -> [B]"""
    return masked_sum(x, mask) / mask.sum(-1).clamp_min(1).to(x.dtype)
