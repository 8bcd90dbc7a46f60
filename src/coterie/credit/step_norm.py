"""TempFlow-GRPO's advantage: among rollouts of a prompt whose noise fell on the same step (arXiv:2508.04324)."""

from typing import Literal

from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.pieces import credit


@credit(paper="arXiv:2508.04324", min_group=2)
def step_norm(
    rewards: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    scale: Literal["std", "batch_std", "none"] = "std",
    ddof: int = 0,
    eps: float = 1e-4,
) -> Tensor:
    """Reward minus the mean of the rollouts of its group whose first decision stands at the same place, over their
    standard deviation. [B] -> [B]

    scale, ddof and eps are those of group_norm, which this is where all rollouts begin at the same decision. A rollout
    alone at its place gets exactly 0.
    """
    first = (mask.cumsum(-1) == 0).sum(-1)
    return group_norm(rewards, groups * (mask.shape[1] + 1) + first, scale=scale, ddof=ddof, eps=eps)
