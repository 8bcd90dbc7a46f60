"""M-GRPO's alignment of trajectories: an episode of many calls weighs no more than one of few (arXiv:2511.13288)."""

from torch import Tensor

from coterie.columns import in_shape_of
from coterie.pieces import selection
from coterie.reductions import call_share


@selection(paper="arXiv:2511.13288")
def align_calls(groups: Tensor, episode: Tensor, weights: Tensor) -> Tensor:
    """Weights over the number of rollouts that the episode has in the group, times their mean number in an episode of
    the batch. [B] or [B,T] -> the same

    That is what repeating or leaving out calls by chance, until all episodes have the mean number, does in expectation.
    """
    share = call_share(groups, episode, weights.dtype)
    return weights * in_shape_of(share * len(share) / share.sum(), weights)
