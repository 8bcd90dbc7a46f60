"""GTPO: tokens that right and wrong rollouts have in common are not pushed down (arXiv:2508.03772)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import masked_mean


@credit(paper="arXiv:2508.03772", min_group=2, shape="B T")
def conflict_tokens(
    advantages: Tensor,
    tokens: Tensor,
    entropy_old: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    boost: float = 2.0,
    entropy_scale: float = 0.1,
    max_entropy: float = 0.7,
    count: Literal["union", "code"] = "code",
) -> Tensor:
    """Advantages with conflict tokens reweighted and uncertain rollouts left out. [B] or [B,T] -> [B,T]

    A decision is in conflict where it, and every one before it, is also taken at that place in a rollout of the group
    whose advantage has the other sign; or it and every one after it, counted from the end. There a positive advantage
    is multiplied by `boost`, a negative one by 0, once for the beginning and once for the end. Then all decisions of a
    rollout are divided by how many of them are in conflict (at least 1): in the "union" of both runs, or in the longer
    of the two, as the authors' "code" counts. Before that the rollout's mean entropy times entropy_scale is taken from
    its advantage, and a rollout whose entropy is above max_entropy gets 0. An advantage of 0 is in no conflict; by its
    entropy it still gets a small push down.
    """
    a = per_decision(advantages, mask)
    begin = _run(_in_conflict(a, tokens, groups, mask), mask)
    end = _run(_in_conflict(a.flip(-1), tokens.flip(-1), groups, mask.flip(-1)), mask.flip(-1)).flip(-1)
    held = boost * (a > 0).to(a.dtype)
    delta = torch.where(begin, held, 1.0) * torch.where(end, held, 1.0)
    both = (begin | end).sum(-1)
    number = both if count == "union" else torch.maximum(begin.sum(-1), end.sum(-1))
    entropy = masked_mean(entropy_old, mask).to(a.dtype)
    certain = entropy <= max_entropy
    record("gtpo/conflict_share", (begin | end).to(a.dtype), mask)
    record("gtpo/entropy", entropy, mask.any(-1))
    record("gtpo/dropped_share", (~certain).to(a.dtype), mask.any(-1))
    shifted = torch.where(certain.unsqueeze(-1), a - entropy_scale * entropy.unsqueeze(-1), 0.0)
    return torch.where(mask, shifted * delta / number.clamp_min(1).unsqueeze(-1), 0.0).to(a.dtype)


def _in_conflict(a: Tensor, tokens: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """Whether a decision is also taken, at the same place, in a rollout of the group of the other sign. [B,T] bool"""
    group = torch.unique(groups, return_inverse=True)[1].unsqueeze(-1)
    where = group * (mask.shape[1] + 1) + mask.cumsum(-1)
    chosen = tokens[mask].long()
    most = int(chosen.max()) if len(chosen) else 0
    label = torch.unique(where[mask] * (most + 1) + chosen, return_inverse=True)[1]
    up, down = a[mask] > 0, a[mask] < 0
    has_up, has_down = (torch.zeros(len(label) + 1, dtype=torch.bool, device=a.device) for _ in range(2))
    has_up[label[up]] = True
    has_down[label[down]] = True
    return torch.zeros_like(mask).masked_scatter(mask, (up & has_down[label]) | (down & has_up[label]))


def _run(hit: Tensor, mask: Tensor) -> Tensor:
    """The decisions of each row up to the first that is no hit. [B,T] bool"""
    return mask & ((mask & ~hit).cumsum(-1) == 0)
