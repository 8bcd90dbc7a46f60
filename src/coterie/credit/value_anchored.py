"""VGPO: what a denoising step is worth from there on, against the group and against 0 (arXiv:2512.12387)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean, group_std, masked_mean, returns_to_go


@credit(paper="arXiv:2512.12387", min_group=2, shape="B T")
def value_anchored(
    rewards: Tensor,
    preview_rewards: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    gamma: float = 0.9,
    absolute: float = 0.1,
    anchored: int | None = None,
    ddof: int = 0,
    eps: float = 1e-4,
) -> Tensor:
    """omega_t ((Q_t - mean Q_t) / (std Q_t + eps) + absolute Q_t) of each decision, over the group's decisions at the
    same place. [B] -> [B,T]

    Q_t: sum of gamma^(k - t) R_k over the decisions k >= t of the rollout, where R_k is the reward of the sample that
    is foreseen after k, and of the finished sample after the last. omega_t: Q_t over its mean over the rollout; 1 for a
    rollout whose Q are not all of one sign, where a mean says nothing.

    absolute: weight of the part that does not compare. It stays where a group is all equal, pushes rewards above 0 up
    and those below down; 0 is none. anchored: it acts on so many first decisions of a rollout, by default on all.
    """
    place = mask.cumsum(-1)
    last = mask & (place == place[:, -1:])
    given = torch.where(last, rewards.unsqueeze(-1), preview_rewards)
    order = torch.where(mask, place, place.shape[1] + 1).argsort(dim=-1, stable=True)  # decisions without gaps between
    there = mask.gather(1, order)
    q = torch.zeros_like(given).scatter(1, order, returns_to_go(given.gather(1, order), there, gamma))
    row, column = mask.nonzero(as_tuple=True)
    value, label = q[mask], groups[row] * mask.shape[1] + column
    alone = group_is_constant(value, label) | (group_count(label, value.dtype) <= ddof)
    relative = (value - group_mean(value, label)) / (group_std(value, label, ddof) + eps)
    acts = torch.ones_like(value) if anchored is None else (place[mask] <= anchored).to(value.dtype)
    advantage = torch.where(alone, 0.0, relative) + absolute * acts * value
    signs = torch.where(mask, q.sign(), 0.0).sum(-1).abs() == mask.sum(-1)
    mean = masked_mean(q, mask)
    omega = torch.where(signs, 1 / torch.where(signs & (mean != 0), mean, 1.0), 0.0)[row]
    omega = torch.where(signs[row], value * omega, 1.0)
    record("value/relative", torch.where(alone, 0.0, relative).abs())
    record("value/absolute", (absolute * acts * value).abs())
    return torch.zeros_like(given).masked_scatter(mask, omega * advantage)
