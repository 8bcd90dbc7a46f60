"""MC-GRPO's pivot: the rollout that is its group's median teaches nothing and is left out (arXiv:2601.22582)."""

from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import group_median, group_position


@selection(paper="arXiv:2601.22582")
def drop_pivot(rewards: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """Weight 0 for one rollout a group, the first whose reward is the median. [B] or [B,T] -> the same

    Others keep theirs, so groups of G+1 rollouts train on G. A group of one loses its only rollout.
    """
    other = (rewards != group_median(rewards, groups)).to(rewards.dtype)
    keep = (group_position(other, groups) != 0).to(weights.dtype)
    record("weights/pivot_share", 1 - keep)
    return weights * in_shape_of(keep, weights)
