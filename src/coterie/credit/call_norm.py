"""M-GRPO's advantage of a sub-agent: a call against all calls of its prompt, every episode counting the same
(arXiv:2511.13288)."""

from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import call_share, group_is_constant, group_sum


@credit(paper="arXiv:2511.13288", shape="B", min_group=2)
def call_norm(rewards: Tensor, groups: Tensor, episode: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Reward minus the group's mean, over its population standard deviation + eps. [B] -> [B]

    Mean and deviation are over episodes of means over their calls, that is, over rollouts of which each counts one over
    the number that its episode has in the group. Where every episode has as many it is group_norm with ddof=0. A group
    of equal rewards gets exactly 0.
    """
    share = call_share(groups, episode, rewards.dtype)
    record("calls/an_episode", 1 / share)
    total = group_sum(share, groups)
    centred = rewards - group_sum(share * rewards, groups) / total
    std = (group_sum(share * centred**2, groups) / total).sqrt()
    return (centred / (std + eps)).masked_fill(group_is_constant(rewards, groups), 0.0)
