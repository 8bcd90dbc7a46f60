"""MC-GRPO's advantage: how far a reward stands from the median of its group (arXiv:2601.22582)."""

from typing import Literal

from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_median, group_std


@credit(paper="arXiv:2601.22582", min_group=2)
def median_norm(
    rewards: Tensor,
    groups: Tensor,
    *,
    scale: Literal["mad", "std", "none"] = "mad",
    ddof: int = 1,
    eps: float = 1e-3,
) -> Tensor:
    """Reward minus its group's median, over a spread of the group. [B] -> [B]

    scale: "mad" divides by the median distance to the median + eps, "std" by the group's standard deviation + eps,
    "none" does not divide. A group of even size takes the lower of its two middle rewards. With 0/1 rewards a group
    of odd size has MAD 0, so "mad" divides by eps alone. A group of equal rewards or of one gets exactly 0.
    """
    centred = rewards - group_median(rewards, groups)
    mad = group_median(centred.abs(), groups)
    record("credit/mad_zero_share", (mad == 0).to(rewards.dtype))
    if scale == "none":
        return centred
    return centred / ((mad if scale == "mad" else group_std(rewards, groups, ddof)) + eps)
