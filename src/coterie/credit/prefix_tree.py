"""TEMPO: the rollouts of a group are a tree of shared prefixes, whose nodes have values (arXiv:2509.18314)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean, group_std, shared_prefixes


@credit(paper="arXiv:2509.18314", min_group=2, shape="B T")
def prefix_tree(
    rewards: Tensor, groups: Tensor, tokens: Tensor, mask: Tensor, *, ddof: int = 0, eps: float = 1e-6
) -> Tensor:
    """Group advantage plus the change of the prefix's value at each decision, over the group's std. [B,T] -> [B,T]

    The value of a prefix is the mean reward of the group's rollouts that begin with it, so it changes only where
    rollouts part; no tree is sampled, it is read off the tokens. ddof, eps: of the std. A group of equal rewards or of
    one gets exactly 0, masked decisions too.
    """
    node = shared_prefixes(tokens, mask, groups)[mask]
    mean, zeros = group_mean(rewards, groups), rewards.new_zeros(mask.shape)
    value = zeros.masked_scatter(mask, group_mean(rewards.unsqueeze(-1).expand(mask.shape)[mask], node))
    count = zeros.masked_scatter(mask, group_count(node, rewards.dtype))
    gain = value - _at_decision_before(value, mask, mean)
    # Nodes are nested: as many rollouts as before are the same rollouts.
    parting = mask & (count != _at_decision_before(count, mask, group_count(groups, rewards.dtype)))
    gain = torch.where(parting, gain, zeros)
    record("tempo/branching_share", parting.to(rewards.dtype), mask)
    record("tempo/value_change", gain.abs(), parting)
    scale = group_std(rewards, groups, ddof) + eps
    out = ((rewards - mean).unsqueeze(-1) + gain) / scale.unsqueeze(-1)
    return torch.where(mask & ~group_is_constant(rewards, groups).unsqueeze(-1), out, zeros)


def _at_decision_before(x: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """What x [B,T] is at the decision before each, and `first` [B] where there is none. [B,T]"""
    places = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).cummax(-1).values
    before = torch.nn.functional.pad(places[:, :-1], (1, 0), value=-1)
    return torch.where(before >= 0, x.gather(1, before.clamp_min(0)), first.unsqueeze(-1))
