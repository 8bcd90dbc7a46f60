"""Stratified GRPO: rollouts are compared with those of the same structure (arXiv:2510.06214)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit


@credit(paper="arXiv:2510.06214", min_group=2)
def stratified_norm(
    rewards: Tensor,
    groups: Tensor,
    components: Mapping[str, Tensor],
    *,
    strata: str = "tool_calls",
    alpha: float = 0.8,
    cap: int | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """alpha times the z-score within a rollout's stratum plus 1 - alpha times that within its group. [B] -> [B]

    strata: the reward component that says which stratum of its group a rollout is in (a count of tool calls, say; a
    function of weight 0 only annotates). cap: counts above it are one stratum. A stratum of one, or of equal rewards,
    has no z-score of its own, so such rollouts keep the second part alone; alpha = 0 is GRPO.
    """
    label = component(components, strata, "stratified_norm").nan_to_num(-1.0)
    label = label if cap is None else label.clamp_max(cap)
    kinds = torch.unique(label, return_inverse=True)[1]
    both = torch.unique(torch.stack([groups.to(kinds.dtype), kinds]), dim=1, return_inverse=True)[1]
    within = group_norm(rewards, both, ddof=ddof, eps=eps)
    record("stratified/strata_per_group", len(both.unique()) / max(1, len(groups.unique())))
    return alpha * within + (1 - alpha) * group_norm(rewards, groups, ddof=ddof, eps=eps)
