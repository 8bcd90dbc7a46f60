"""E-GRPO's reward: wrong answers that came across more of the question's entities are less wrong (arXiv:2510.24694)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme


@shaping(paper="arXiv:2510.24694")
def entity_match(
    rewards: Tensor,
    groups: Tensor,
    correct: Tensor,
    truncated: Tensor,
    components: Mapping[str, Tensor],
    *,
    found: str = "found",
    alpha: float = 0.3,
) -> Tensor:
    """The reward where the answer is right; alpha times the entities found over the group's most where it is wrong; 0
    for truncated rollouts. [B] -> [B]

    found: the reward component that counts the question's entities in a rollout's own words, or gives their share; none
    where it is not given (NaN) or negative. A group that found nothing has 0 for its wrong answers.
    """
    count = component(components, found, "entity_match").nan_to_num(0.0).clamp_min(0.0).to(rewards.dtype)
    most = group_extreme(count, groups, largest=True)
    share = torch.where(most > 0, count / torch.where(most > 0, most, 1.0), torch.zeros_like(count))
    record("entity/found_share", share, ~correct)
    out = torch.where(correct, rewards, alpha * share)
    return torch.where(truncated, torch.zeros_like(out), out)
