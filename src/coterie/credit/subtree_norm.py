"""TreePO's advantage: a rollout against its group and against each smaller subtree it is in (arXiv:2508.17445)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_is_constant, group_mean, shared_prefixes


@credit(paper="arXiv:2508.17445", min_group=2, shape="B")
def subtree_norm(
    rewards: Tensor,
    groups: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    segment: int = 512,
    weights: Literal["equal", "size"] = "equal",
    skip_constant: bool = False,
    scale: Literal["batch_std", "none"] = "batch_std",
    eps: float = 1e-8,
) -> Tensor:
    """Mean over the subtrees a rollout is in of its reward minus the subtree's mean, then whitened. [B] -> [B]

    A subtree are the rollouts of the group that share their first 1, 2, … segments of `segment` decisions; the whole
    group is one too, and others count where they have two members. It is read off the tokens, whoever made the tree.
    weights: subtrees weigh the same ("equal") or by their members ("size"). skip_constant leaves out smaller subtrees
    of equal rewards, which add 0. scale: "batch_std" takes off the mean over all decisions of the update and divides by
    sqrt(variance + eps). Equal rewards get exactly 0.
    """
    total = torch.where(group_is_constant(rewards, groups), 0.0, rewards - group_mean(rewards, groups))
    weight = group_count(groups, rewards.dtype) if weights == "size" else torch.ones_like(rewards)
    total = total * weight
    ends = mask & (mask.cumsum(-1) % segment == 0)
    node, row = shared_prefixes(tokens, mask, groups)[ends], ends.nonzero()[:, 0]
    reward, size = rewards[row], group_count(node, rewards.dtype)
    constant = group_is_constant(reward, node) if len(node) else torch.zeros_like(node, dtype=torch.bool)
    counts = (size > 1) & ~(constant & skip_constant)
    share = counts * (size if weights == "size" else torch.ones_like(size))
    gain = torch.where(constant, 0.0, reward - group_mean(reward, node)) * share
    out = total.index_add(0, row, gain) / weight.index_add(0, row, share)
    levels = torch.zeros_like(rewards).index_add(0, row, counts.to(rewards.dtype))
    record("tree/levels", levels + 1)
    record("tree/sharing_share", (levels > 0).to(rewards.dtype))
    return _whitened(out, mask, eps) if scale == "batch_std" else out


def _whitened(x: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Minus the mean over all decisions, over the root of their unbiased variance + eps: long rollouts weigh more."""
    length = mask.sum(-1).to(x.dtype)
    live, n = x[length > 0], length.sum()
    if n <= 1 or bool(live.max() == live.min()):
        return torch.zeros_like(x)
    centred = x - (x * length).sum() / n
    return centred * torch.rsqrt((centred**2 * length).sum() / (n - 1) + eps)
