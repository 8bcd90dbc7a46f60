"""GRPO-CARE's bonus: of the right answers, those that the reasoning makes likely (arXiv:2506.16141)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_mean, group_sum, masked_mean


@shaping(paper="arXiv:2506.16141")
def consistency_bonus(
    rewards: Tensor,
    groups: Tensor,
    logp_ref: Tensor,
    answer_mask: Tensor,
    mask: Tensor,
    components: Mapping[str, Tensor],
    correct: Tensor | None = None,
    *,
    accuracy: str | None = None,
    coef: float = 0.5,
    margin: float = 0.01,
    cap: float = 0.95,
    least: float = 0.1,
) -> Tensor:
    """Rewards plus coef * accuracy for accurate rollouts whose answer is likely after their own reasoning. [B] -> [B]

    Likely is exp of the mean logp_ref over the decisions of the final answer, at most `cap`; a rollout has the bonus if
    that is no more than `margin` below the mean of the group's accurate rollouts. Accurate are those above `least` and
    not below the group's mean accuracy: the verifier's verdict, or the component that `accuracy` names. A rollout in
    which no answer was found, or that has no accuracy (NaN), is not among them.
    """
    given = correct if accuracy is None else component(components, accuracy, "consistency_bonus")
    if given is None:
        raise RewardError(
            "consistency_bonus reads the verifier's verdict, and the task has no verifier",
            hint="rewards.shaping.consistency_bonus.accuracy=NAME, a reward component",
        )
    worth = given.to(rewards.dtype)
    answered, marked = answer_mask & mask, ~worth.isnan()
    likely = masked_mean(logp_ref, answered).exp().clamp(max=cap).to(rewards.dtype)
    known = answered.any(-1) & marked
    mean = torch.zeros_like(worth)
    mean[marked] = group_mean(worth[marked], groups[marked])
    high = (known & (worth > least) & (worth >= mean)).to(rewards.dtype)
    bar = group_sum(high * likely, groups) / group_sum(high, groups).clamp_min(1.0) - margin
    consistent = (high > 0) & (likely >= bar)
    record("care/likelihood", likely, known)
    record("care/consistent_share", consistent, high > 0)
    return torch.where(consistent, rewards + coef * worth, rewards)
