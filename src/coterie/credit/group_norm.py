"""GRPO's advantage: how far a reward stands from its group (DeepSeekMath, arXiv:2402.03300)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_is_constant, group_mean, group_std


@credit(paper="arXiv:2402.03300", min_group=2)
def group_norm(
    rewards: Tensor,
    groups: Tensor,
    *,
    scale: Literal["std", "batch_std", "centred_std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Tensor:
    """Reward minus its group's mean, over a standard deviation. [B] -> [B]

    scale: "std" divides by the group's standard deviation + eps, "batch_std" by that of all rewards of the update,
    "centred_std" by that of the rewards less their groups' means (ScaleRL, arXiv:2510.13786), "none" does not divide
    (Dr. GRPO, arXiv:2503.20783). ddof: 1 as TRL and verl, 0 as the paper writes it.
    A group of equal rewards (max == min) or of one gets exactly 0.
    """
    centred = rewards - group_mean(rewards, groups)
    centred = torch.where(group_is_constant(rewards, groups), torch.zeros_like(centred), centred)
    if scale == "none":
        return centred
    if scale in ("batch_std", "centred_std"):
        over = rewards if scale == "batch_std" else centred
        std = over.std(correction=ddof) if len(over) > ddof else over.new_zeros(())
        return centred / (std + eps)
    return centred / (group_std(rewards, groups, ddof) + eps)
