"""How the distributions of a group's rollouts relate to one another: projections in chunks, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""Hidden states [n,H] to logits [n,V], in the precision to compute in."""
_BOUND = 11.0
"""Largest difference of log-probs that counts, as in the source."""


def position_spread(hidden: Tensor, logits: Logits, groups: Tensor, mask: Tensor, chunk: int) -> Tensor:
    """How much the distributions of a group's rollouts differ at each position (TW-GRPO, arXiv:2505.24718). [N]

    hidden [N,H] are the states that predict the decisions of mask [B,T], row by row. At position t the group's mean
    log-prob of each token is compared with each rollout's: the mean over rollouts of sum_V e^d - d - 1, d the clamped
    difference. A rollout without a decision at t counts as uniform. All decisions of a group at t share the value. At
    most `chunk` rows of logits, or one position of a group, exist at a time.
    """
    group = torch.unique(groups, return_inverse=True)[1]
    members = torch.bincount(group)
    position = torch.arange(mask.shape[1], device=mask.device)
    cells, cell = torch.unique((group.unsqueeze(-1) * len(position) + position)[mask], return_inverse=True)
    size, here = members[cells // len(position)], torch.bincount(cell)
    order, ends = cell.argsort(stable=True), here.cumsum(0).tolist()
    parts, step = [], max(1, chunk // int(members.max()))
    for first in range(0, len(cells), step):
        some = slice(first, first + step)
        rows = order[ends[first - 1] if first else 0 : ends[min(first + step, len(cells)) - 1]]
        logp = logits(hidden[rows]).log_softmax(-1)
        uniform, own = -math.log(logp.shape[-1]), cell[rows] - first
        count = size[some].to(logp.dtype).unsqueeze(-1)
        absent = (size - here)[some].to(logp.dtype)
        mean = absent.unsqueeze(-1).expand(-1, logp.shape[-1]) * uniform
        mean = mean.index_add(0, own, logp).div_(count)
        total = _divergence(mean - uniform) * absent
        parts.append(total.index_add(0, own, _divergence(mean[own] - logp)) / count.squeeze(-1))
    return torch.cat(parts)[cell] if parts else hidden.sum(-1)


def _divergence(difference: Tensor) -> Tensor:
    """sum_V e^d - d - 1 of clamped differences. [n,V] -> [n]"""
    d = difference.clamp_(-_BOUND, _BOUND)
    return (d.exp() - d - 1).sum(-1)


def head_influence(hidden: Tensor, logits: Logits, tokens: Tensor, groups: Tensor, share: Tensor, chunk: int) -> Tensor:
    """How much a step on each decision's log-prob raises those of others, through the head (arXiv:2510.03669). [N]

    With e = one-hot - probabilities, decision t's gradient at the head is the outer product of e_t and h_t. The result
    is the sum over the decisions u of its group of share_u <e_t, e_u> <h_t, h_u>: exactly e_t' M h_t with M the sum of
    share_u e_u h_u', so that time is linear in N, and memory is one [V,H] matrix and `chunk` rows of logits. hidden
    [N,H]; tokens, groups, share [N]. A group without any share gets 0.
    """

    def errors(rows: Tensor) -> Tensor:
        e = logits(hidden[rows]).softmax(-1).neg_()
        return e.scatter_add_(-1, tokens[rows].unsqueeze(-1), torch.ones_like(e[:, :1]))

    out = share.new_zeros(len(hidden))
    for group in torch.unique(groups[share != 0]):
        rows = (groups == group).nonzero().squeeze(-1)
        direction = None
        for some in rows[share[rows] != 0].split(chunk):
            states = hidden[some].to(share.dtype) * share[some].unsqueeze(-1)
            part = errors(some).T @ states
            direction = part if direction is None else direction.add_(part)
        assert direction is not None
        for some in rows.split(chunk):
            out[some] = ((errors(some) @ direction) * hidden[some].to(share.dtype)).sum(-1)
    return out
