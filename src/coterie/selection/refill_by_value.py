"""VSPO: groups without a signal give their place in the update to hard and uncertain ones (arXiv:2512.07478)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import group_extreme, group_is_constant, group_mean, group_std


@selection(paper="arXiv:2512.07478")
def refill_by_value(rewards: Tensor, groups: Tensor, mask: Tensor, weights: Tensor, *, most: float = 2.0) -> Tensor:
    """Weight 0 for groups of equal rewards; the others share the places of those in proportion to their value
    (1 - mean) std, limited to `most` places each. [B] or [B,T] -> the same

    mean and population std are of the group's rewards, which should be in [0, 1]; a mean above 1 is of value 0, and
    where all values are 0 all get the same. The expected number of places is taken, nothing is drawn. The mean weight
    over the remaining groups stays 1: a limit moves weight between them. Where all groups differ nothing changes; where
    none does all weights are 0. Groups without weight have no place.
    """
    live = (mask & (per_decision(weights, mask) != 0)).any(-1).to(rewards.dtype)
    here = group_extreme(live, groups, True) > 0
    flat = here & group_is_constant(rewards, groups)
    first = _first_of_group(groups)
    taught, count, empty = here & ~flat, (first & here & ~flat).sum(), (first & flat).sum()
    record("weights/refilled_share", empty / (count + empty).clamp_min(1))
    value = torch.where(taught, (1 - group_mean(rewards, groups)).clamp_min(0) * group_std(rewards, groups, 0), 0.0)
    total = value[first].sum()
    share = torch.where(total > 0, value / torch.where(total > 0, total, 1.0), taught / count.clamp_min(1))
    places = torch.where(taught, (1 + empty * share).clamp_max(most), 0.0)
    scale = torch.where(empty > 0, count / places[first].sum().clamp_min(1e-12), 1.0)
    out = (places * scale).to(weights.dtype)
    return weights * in_shape_of(out, weights)


def _first_of_group(groups: Tensor) -> Tensor:
    """Which rows are the first of their group. [B] bool"""
    row = torch.arange(len(groups), device=groups.device)
    return group_extreme(row, groups, False) == row
